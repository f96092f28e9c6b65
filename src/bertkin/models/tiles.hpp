// Matrix tiles (AMX), on processors that have them: here products of bfloat16 run ten times as fast as by dot products.
//
// A tile is 16 rows of 64 bytes. One instruction adds the product of two of them, 16 x 32 numbers of a and 32 x 16 of b, to
// 16 x 16 sums in float32. b is in pairs: words that hold what stands at rows 2k and 2k + 1 of a column. The system hands tiles
// out on request (they make a thread's state larger); where it does not, dot products do the same.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAVE_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tiles {

#ifdef HAVE_TILES

// Whether the system lets this process use tiles; asked once.
inline bool allowed() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    static const bool yes = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return yes;
}

inline bool& wanted() {
    static bool yes = true;
    return yes;
}

inline bool usable() { return wanted() && allowed(); }

// A thread's tiles, for as long as this lives: all eight whole, or four of sums and one of a (0 to 4) with fewer rows.
struct Held {
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, none[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    const bool some = usable();
    explicit Held(int rows = 16) {
        Shape shape;
        for (int i = 0; i < 5; ++i) shape.rows[i] = uint8_t(rows);
        asm volatile("" ::"r"(&shape) : "memory");  // gcc's intrinsic says that it reads eight bytes, and the rest would be left out
        if (some) _tile_loadconfig(&shape);
    }
    ~Held() {
        if (some) _tile_release();
    }
};

// What was stored is in memory when tiles are loaded: gcc's intrinsics do not say that they read it.
inline void stored() { asm volatile("" ::: "memory"); }

// sums [16 M, 16 N] (+)= a [16 M, k] b [k, 16 N], M and N of 1 or 2, k a multiple of 32. Rows of a, of b's pairs and of the sums
// are so many bytes apart. `between()` is called after every 32 of k.
template <int M, int N, class Between>
inline void block(const void* a, int64_t a_row, const void* b, int64_t b_row, int64_t k, float* sums, int64_t sums_row, bool add,
                  Between between) {
    char* c = reinterpret_cast<char*>(sums);
    const char *left = static_cast<const char*>(a), *right = static_cast<const char*>(b);
    stored();
    if (add) {
        _tile_loadd(0, c, sums_row);
        if constexpr (N > 1) _tile_loadd(1, c + 64, sums_row);
        if constexpr (M > 1) _tile_loadd(2, c + 16 * sums_row, sums_row);
        if constexpr (M > 1 && N > 1) _tile_loadd(3, c + 16 * sums_row + 64, sums_row);
    } else {
        _tile_zero(0);
        if constexpr (N > 1) _tile_zero(1);
        if constexpr (M > 1) _tile_zero(2);
        if constexpr (M > 1 && N > 1) _tile_zero(3);
    }
    for (; k > 0; k -= 32, left += 64, right += 16 * b_row) {
        _tile_loadd(6, right, b_row);
        _tile_loadd(4, left, a_row);
        if constexpr (N > 1) _tile_loadd(7, right + 64, b_row);
        if constexpr (M > 1) _tile_loadd(5, left + 16 * a_row, a_row);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (M > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
        between();
    }
    _tile_stored(0, c, sums_row);
    if constexpr (N > 1) _tile_stored(1, c + 64, sums_row);
    if constexpr (M > 1) _tile_stored(2, c + 16 * sums_row, sums_row);
    if constexpr (M > 1 && N > 1) _tile_stored(3, c + 16 * sums_row + 64, sums_row);
}

#else

struct Held {
    explicit Held(int = 16) {}
};
inline bool usable() { return false; }

#endif

// Lets tiles be used or not, where there are any.
inline void use(bool yes) {
#ifdef HAVE_TILES
    wanted() = yes;
#else
    (void)yes;
#endif
}

}  // namespace tiles

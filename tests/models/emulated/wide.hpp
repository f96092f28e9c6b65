// AVX-512, its bfloat16 and whole-number dot products, and matrix tiles, in plain C++: what the kernels' sources call, on a
// processor that has none of them. Included before those sources (`-include`), so that they compile as they are; slow, for tests.
//
// Each function does what the instruction of its name does, and ends the process where that would: at an address that is not
// aligned, at a tile that nobody configured, at shapes that do not fit. Only subnormal numbers are not flushed to zero.
#pragma once

#include <immintrin.h>  // the types, and what narrower processors have; now, before the sources are told that there is more

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__AVX512F__)
#error "this processor has what is emulated here"
#endif
#define __AVX512F__ 1
#define __AVX512BF16__ 1
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#define syscall(...) 0  // the system hands out tiles

namespace emulated {

// What a register holds, as numbers of one type.
template <class T, class Register = __m512i>
struct Lanes {
    static constexpr int COUNT = sizeof(Register) / sizeof(T);
    T at[COUNT];
    Lanes() = default;
    template <class Other>
    explicit Lanes(Other x) {
        static_assert(sizeof(Other) == sizeof(Register));
        std::memcpy(at, &x, sizeof at);
    }
    operator Register() const {
        Register x;
        std::memcpy(&x, at, sizeof at);
        return x;
    }
    T& operator[](int i) { return at[i]; }
};
typedef Lanes<float, __m512> Floats;
typedef Lanes<int32_t> Ints;
typedef Lanes<uint16_t> Halves;

template <class Kind, class F>
inline Kind each(F f) {
    Kind out;
    for (int i = 0; i < Kind::COUNT; ++i) out[i] = f(i);
    return out;
}

inline float wide(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint16_t narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class Register>
inline Register read(const void* p) {
    Register x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
template <class Register>
inline void write(void* p, Register x) {
    std::memcpy(p, &x, sizeof x);
}
inline void refuse_if(bool wrong) {
    if (wrong) std::abort();
}
template <class Register>
inline Register read_aligned(const void* p) {
    refuse_if(reinterpret_cast<uintptr_t>(p) % sizeof(Register));
    return read<Register>(p);
}
template <class Register>
inline void write_aligned(void* p, Register x) {
    refuse_if(reinterpret_cast<uintptr_t>(p) % sizeof(Register));
    write(p, x);
}

// Only what the mask names is read or written: the rest of the row may lie outside of memory.
template <class Register>
inline Register read_halves(uint32_t mask, const void* p) {
    const uint16_t* from = static_cast<const uint16_t*>(p);
    return each<Lanes<uint16_t, Register>>([&](int i) { return mask >> i & 1 ? from[i] : uint16_t(0); });
}
inline void write_halves(void* p, uint32_t mask, __m512i x) {
    Halves from(x);
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) static_cast<uint16_t*>(p)[i] = from[i];
}

// From each 128 bits of a and b, their low (or high) elements by turns.
template <class T, class Register>
inline Register unpacked(Register a, Register b, bool high) {
    constexpr int PART = 16 / sizeof(T);
    Lanes<T, Register> x(a), y(b);
    return each<Lanes<T, Register>>([&](int i) {
        int at = i / PART * PART + (high ? PART / 2 : 0) + i % PART / 2;
        return i % 2 ? y[at] : x[at];
    });
}
// Two parts of 128 bits of a, then two of b, each chosen by two bits.
template <class Register>
inline Register shuffled(Register a, Register b, int chosen) {
    Lanes<int32_t, Register> x(a), y(b);
    return each<Lanes<int32_t, Register>>([&](int i) {
        int part = i / 4, at = (chosen >> 2 * part & 3) * 4 + i % 4;
        return part < 2 ? x[at] : y[at];
    });
}

inline __m512i permuted(__m512i a, __m512i index, __m512i b) {
    Halves x(a), y(b), at(index);
    return each<Halves>([&](int i) { return at[i] & 32 ? y[at[i] & 31] : x[at[i] & 31]; });
}

inline __m512 dot(__m512 sums, __m512bh a, __m512bh b) {
    Halves x(a), y(b);
    Floats s(sums);
    return each<Floats>([&](int i) {
        return s[i] + wide(x[2 * i + 1]) * wide(y[2 * i + 1]) + wide(x[2 * i]) * wide(y[2 * i]);
    });
}
inline __m512i dot_bytes(__m512i sums, __m512i unsigned_ones, __m512i signed_ones) {
    Lanes<uint8_t> x(unsigned_ones);
    Lanes<int8_t> y(signed_ones);
    Ints s(sums);
    return each<Ints>([&](int i) {
        int sum = s[i];
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += int(x[j]) * int(y[j]);
        return sum;
    });
}

inline __m256bh narrowed(__m512 x) {
    Floats from(x);
    return each<Lanes<uint16_t, __m256bh>>([&](int i) { return narrow(from[i]); });
}
inline __m512bh narrowed(__m512 high, __m512 low) {
    Floats x(low), y(high);
    return each<Lanes<uint16_t, __m512bh>>([&](int i) { return narrow(i < 16 ? x[i] : y[i - 16]); });
}
inline __m512i widened(__m256i x) {
    Lanes<uint16_t, __m256i> from(x);
    return each<Ints>([&](int i) { return int32_t(from[i]); });
}
inline __m128i low_bytes(__m512i x) {
    Ints from(x);
    return each<Lanes<uint8_t, __m128i>>([&](int i) { return uint8_t(from[i]); });
}
inline __m128i bounded_bytes(__m512i x) {  // taken for unsigned, and the largest byte where they are more
    Ints from(x);
    return each<Lanes<uint8_t, __m128i>>([&](int i) { return uint8_t(std::min<uint32_t>(uint32_t(from[i]), 255)); });
}
inline __m512i rounded(__m512 x) {
    Floats from(x);
    return each<Ints>([&](int i) { return int32_t(std::nearbyint(from[i])); });
}
inline __m512 floats(__m512i x) {
    Ints from(x);
    return each<Floats>([&](int i) { return float(from[i]); });
}
inline __m512 whole(__m512 x) {
    Floats from(x);
    return each<Floats>([&](int i) { return std::nearbyint(from[i]); });
}
// x 2^floor(n): 0 and infinity where n is infinite, even of no number.
inline float scaled(float x, float n) {
    if (std::isinf(n) && x != x) return n > 0 ? n : 0.0f;
    if (x != x || n != n) return x + n;
    return std::ldexp(x, int(std::fmin(std::fmax(std::floor(n), -1000.0f), 1000.0f)));
}
inline __m512 scaled(__m512 x, __m512 powers) {
    Floats from(x), n(powers);
    return each<Floats>([&](int i) { return scaled(from[i], n[i]); });
}
// 14 bits of it: what is made of them must not need more.
inline __m512 reciprocal(__m512 x) {
    Lanes<uint32_t, __m512> bits((__m512)(1.0f / x));
    for (uint32_t& one : bits.at) one &= ~uint32_t(0x1ff);
    return bits;
}
inline __m512 fused(__m512 a, __m512 b, __m512 c) {
    Floats x(a), y(b), z(c);
    return each<Floats>([&](int i) { return std::fma(x[i], y[i], z[i]); });
}

inline float sum(__m512 x) {
    Floats from(x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) from[i] += from[i + half];
    return from[0];
}
inline float largest(__m512 x) {
    Floats from(x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) from[i] = from[i] > from[i + half] ? from[i] : from[i + half];
    return from[0];
}

inline __mmask16 greater(__m512 a, __m512 b) {
    Floats x(a), y(b);
    uint32_t mask = 0;
    for (int i = 0; i < 16; ++i) mask |= uint32_t(x[i] > y[i]) << i;
    return __mmask16(mask);
}
template <class Register>
inline Register chosen(Register otherwise, __mmask16 mask, Register x) {
    Lanes<int32_t, Register> from(x), had(otherwise);
    return each<Lanes<int32_t, Register>>([&](int i) { return mask >> i & 1 ? from[i] : had[i]; });
}

inline __m512i all(int x) {
    return each<Ints>([&](int) { return x; });
}
inline __m512 all(float x) {
    return each<Floats>([&](int) { return x; });
}
template <class... Numbers>
inline __m512i listed(Numbers... from_the_last) {
    int at[] = {from_the_last...};
    return each<Ints>([&](int i) { return at[15 - i]; });
}
inline __m512 repeated(__m128 x) {
    Lanes<float, __m128> from(x);
    return each<Floats>([&](int i) { return from[i % 4]; });
}
inline __m512i product(__m512i a, __m512i b) {
    Lanes<uint32_t> x(a), y(b);
    return each<Lanes<uint32_t>>([&](int i) { return x[i] * y[i]; });
}
inline __m512i moved_left(__m512i a, int bits) {
    Lanes<uint32_t> x(a);
    return each<Lanes<uint32_t>>([&](int i) { return x[i] << bits; });
}

// ---------------------------------------------------------------------------------------------------------------- tiles

struct Tile {
    char at[16][64];
    int rows, bytes;
};
inline Tile& tile(int number) {
    static thread_local Tile tiles[8];
    return tiles[number];
}
inline Tile& configured(int number) {
    refuse_if(!tile(number).rows || !tile(number).bytes);
    return tile(number);
}
inline void shape(const void* config) {
    const char* from = static_cast<const char*>(config);
    refuse_if(from[0] != 1);
    for (int i = 0; i < 8; ++i) {
        uint16_t bytes;
        std::memcpy(&bytes, from + 16 + 2 * i, 2);
        tile(i) = Tile{{}, uint8_t(from[48 + i]), bytes};
        refuse_if(tile(i).rows > 16 || bytes > 64);
    }
}
inline void release() {
    for (int i = 0; i < 8; ++i) tile(i) = Tile{};
}
inline void fill(int number, const void* from, int64_t stride) {
    Tile& t = configured(number);
    std::memset(t.at, 0, sizeof t.at);
    for (int r = 0; r < t.rows; ++r) std::memcpy(t.at[r], static_cast<const char*>(from) + r * stride, t.bytes);
}
inline void empty(int number, void* to, int64_t stride) {
    const Tile& t = configured(number);
    for (int r = 0; r < t.rows; ++r) std::memcpy(static_cast<char*>(to) + r * stride, t.at[r], t.bytes);
}
inline void zero(int number) { std::memset(configured(number).at, 0, sizeof Tile::at); }

// For each row of the sums what `row` makes of it, of a's row and of b, whose rows hold, for each column, what stands in a word
// (two or four numbers) of a's row.
template <class Row>
inline void multiply(int sums, int a, int b, Row row) {
    Tile &s = configured(sums), &x = configured(a), &y = configured(b);
    refuse_if(s.rows != x.rows || s.bytes != y.bytes || x.bytes != 4 * y.rows);
    for (int r = 0; r < s.rows; ++r) row(s.at[r], x.at[r], y);
}
inline void multiply_bytes(int sums, int a, int b) {
    multiply(sums, a, b, [](char* s, const char* x, const Tile& y) {
        for (int word = 0; word < y.rows; ++word)
            write(s, dot_bytes(read<__m512i>(s), all(read<int32_t>(x + 4 * word)), read<__m512i>(y.at[word])));
    });
}
// Even and odd numbers have sums of their own, which are added before they are added to what was there.
inline void multiply_halves(int sums, int a, int b) {
    multiply(sums, a, b, [](char* s, const char* x, const Tile& y) {
        Floats odd(all(0.0f)), even(all(0.0f));
        for (int word = 0; word < y.rows; ++word) {
            Halves right(read<__m512i>(y.at[word]));
            float low = wide(read<uint16_t>(x + 4 * word)), high = wide(read<uint16_t>(x + 4 * word + 2));
            for (int i = 0; i < 16; ++i) even[i] += low * wide(right[2 * i]), odd[i] += high * wide(right[2 * i + 1]);
        }
        Floats had(read<__m512>(s));
        write(s, __m512(each<Floats>([&](int i) { return had[i] + (even[i] + odd[i]); })));
    });
}

}  // namespace emulated

// The instructions' names, from here on.
#undef _mm512_cmp_ps_mask
#undef _mm512_roundscale_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#define _mm256_maskz_loadu_epi16(mask, p) emulated::read_halves<__m256i>(mask, p)
#define _mm512_add_epi32(a, b) ((__m512i)((__v16si)(a) + (__v16si)(b)))
#define _mm512_add_ps(a, b) ((__m512)((a) + (b)))
#define _mm512_broadcast_f32x4 emulated::repeated
#define _mm512_castsi512_ps(x) ((__m512)(x))
#define _mm512_cmp_ps_mask(a, b, how) emulated::greater(a, b)  // the one comparison that is asked for
#define _mm512_cvtepi32_epi8 emulated::low_bytes
#define _mm512_cvtepi32_ps emulated::floats
#define _mm512_cvtepu16_epi32 emulated::widened
#define _mm512_cvtusepi32_epi8 emulated::bounded_bytes
#define _mm512_cvtne2ps_pbh emulated::narrowed
#define _mm512_cvtneps_pbh emulated::narrowed
#define _mm512_cvtps_epi32 emulated::rounded
#define _mm512_dpbf16_ps emulated::dot
#define _mm512_dpbusd_epi32 emulated::dot_bytes
#define _mm512_fmadd_ps emulated::fused
#define _mm512_load_ps emulated::read_aligned<__m512>
#define _mm512_load_si512 emulated::read_aligned<__m512i>
#define _mm512_loadu_ps emulated::read<__m512>
#define _mm512_loadu_si512 emulated::read<__m512i>
#define _mm512_mask_mov_epi32 emulated::chosen<__m512i>
#define _mm512_mask_mov_ps emulated::chosen<__m512>
#define _mm512_mask_storeu_epi16 emulated::write_halves
#define _mm512_maskz_loadu_epi16 emulated::read_halves<__m512i>
#define _mm512_mul_ps(a, b) ((__m512)((a) * (b)))
#define _mm512_mullo_epi32 emulated::product
#define _mm512_permutex2var_epi16 emulated::permuted
#define _mm512_rcp14_ps emulated::reciprocal
#define _mm512_reduce_add_ps emulated::sum
#define _mm512_reduce_max_ps emulated::largest
#define _mm512_roundscale_ps(x, how) emulated::whole(x)  // to the nearest
#define _mm512_scalef_ps emulated::scaled
#define _mm512_set1_epi32(x) emulated::all(int(x))
#define _mm512_set1_ps(x) emulated::all(float(x))
#define _mm512_set_epi32 emulated::listed
#define _mm512_setzero_ps() emulated::all(0.0f)
#define _mm512_setzero_si512() emulated::all(0)
#define _mm512_shuffle_f32x4 emulated::shuffled
#define _mm512_shuffle_i32x4 emulated::shuffled
#define _mm512_slli_epi32 emulated::moved_left
#define _mm512_store_ps emulated::write_aligned
#define _mm512_store_si512 emulated::write_aligned
#define _mm512_storeu_ps emulated::write
#define _mm512_storeu_si512 emulated::write
#define _mm512_sub_epi32(a, b) ((__m512i)((__v16si)(a) - (__v16si)(b)))
#define _mm512_sub_ps(a, b) ((__m512)((a) - (b)))
#define _mm512_unpackhi_epi32(a, b) emulated::unpacked<int32_t>(a, b, true)
#define _mm512_unpackhi_epi64(a, b) emulated::unpacked<int64_t>(a, b, true)
#define _mm512_unpackhi_pd(a, b) emulated::unpacked<double>(a, b, true)
#define _mm512_unpackhi_ps(a, b) emulated::unpacked<float>(a, b, true)
#define _mm512_unpacklo_epi32(a, b) emulated::unpacked<int32_t>(a, b, false)
#define _mm512_unpacklo_epi64(a, b) emulated::unpacked<int64_t>(a, b, false)
#define _mm512_unpacklo_pd(a, b) emulated::unpacked<double>(a, b, false)
#define _mm512_unpacklo_ps(a, b) emulated::unpacked<float>(a, b, false)
#define _tile_dpbf16ps emulated::multiply_halves
#define _tile_dpbusd emulated::multiply_bytes
#define _tile_loadconfig emulated::shape
#define _tile_loadd emulated::fill
#define _tile_release emulated::release
#define _tile_stored emulated::empty
#define _tile_zero emulated::zero

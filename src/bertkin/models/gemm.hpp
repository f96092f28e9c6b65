// Matrix products of bfloat16 on processors with AVX-512 bf16 dot products: c [m, n] = a b, summed in float32.
//
// The product is cut into blocks of c that threads take, each with its whole sum over k, so nothing is shared, and a
// number does not depend on who computed it. A block multiplies a strip of 6 rows of a, which stays in the first-level
// cache, with panels of 64 columns of b, packed once per block into the second-level cache: 24 sums in registers, each
// iteration 24 dot products for 4 loads and 6 broadcasts, so that the dot products alone set the pace. Where k is long,
// it is taken in steps and the sums wait in float32.
//
// The instruction multiplies pairs that stand one after the other along k. Rows of a that lie along k are pairs as they
// are; b, and an a that lies across, are turned into pairs when packed. Packing waits for memory: while products are
// computed, what will be packed next is asked for, a line every few iterations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <new>
#include <omp.h>
#include <sys/mman.h>

namespace gemm {

typedef uint16_t half;   // the bits of a bfloat16
typedef uint32_t pairs;  // two of them, the earlier one low

constexpr int MR = 6, NR = 64;              // rows and columns of a tile
constexpr int64_t STEP = 768, WHOLE = 1152;  // k goes in steps of about 768, but in one when it is at most 1152
constexpr int64_t STRIP = 96;                // rows of a lying across that are packed at a time: a multiple of 6 and 32
constexpr int EVERY = 2;                     // pairs of k between two lines asked for

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline __mmask32 first(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1; }

// ------------------------------------------------------------------------------------------------------------- packing

// A thread's memory for packed operands, kept between calls, in large pages where the system has them.
struct Scratch {
    char* at = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(at); }
    char* take(size_t n) {
        constexpr size_t PAGE = 1 << 21;
        if (n > size) {
            std::free(at);
            size = (n + PAGE - 1) / PAGE * PAGE;
            at = static_cast<char*>(std::aligned_alloc(PAGE, size));
            if (!at) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
            madvise(at, size, MADV_HUGEPAGE);
#endif
        }
        return at;
    }
};

// Lines of a matrix that will be read soon.
struct Ahead {
    const char* at = nullptr;
    int64_t rows = 0, jump = 0;
    int lines = 0, left = 0;
    Ahead() = default;
    Ahead(const half* x, int64_t row, int64_t rows, int64_t cols) : at(reinterpret_cast<const char*>(x)), rows(rows) {
        lines = left = int(ceil_div(cols, 32));
        jump = 2 * row - 64 * int64_t(lines);
    }
    void ask() {
        if (rows <= 0) return;
        _mm_prefetch(at, _MM_HINT_T0);
        at += 64;
        if (--left == 0) at += jump, left = lines, --rows;
    }
};

// 32 columns of two rows woven into pairs; rows and columns outside read as zero.
inline void weave(const half* x, int64_t row, int64_t rows, __mmask32 cols, __m512i& low, __m512i& high) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i unit = _mm512_set1_epi32(0x10001), odd = _mm512_set1_epi32(0x200000);  // indices from 32 on mean b
    const __m512i index = _mm512_add_epi32(_mm512_mullo_epi32(lane, unit), odd);
    __m512i a = rows > 0 ? _mm512_maskz_loadu_epi16(cols, x) : _mm512_setzero_si512();
    __m512i b = rows > 1 ? _mm512_maskz_loadu_epi16(cols, x + row) : _mm512_setzero_si512();
    low = _mm512_permutex2var_epi16(a, index, b);
    high = _mm512_permutex2var_epi16(a, _mm512_add_epi32(index, _mm512_set1_epi32(0x100010)), b);
}

// 16x16 words transposed: two rounds of interleaving, then lanes put in place by two of shuffling.
inline void transpose(__m512i* r, pairs* out, int64_t row) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        __m512i b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        _mm512_store_si512(out + i * row, _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_store_si512(out + (i + 4) * row, _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_store_si512(out + (i + 8) * row, _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_store_si512(out + (i + 12) * row, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
}

// b [k, n] to panels [n / P][k2][P], P of 64 or 32 columns.
template <int P = NR>
inline void pack_b_down(const half* b, int64_t row, int64_t k, int64_t n, pairs* out, int64_t k2) {
    for (int64_t i = 0; i < k; i += 2)
        for (int64_t c = 0; c < n; c += P)
            for (int64_t h = c; h < c + P; h += 32) {
                const half* from = b + i * row + h;
                _mm_prefetch(from + 16 * row, _MM_HINT_T0);
                _mm_prefetch(from + 17 * row, _MM_HINT_T0);
                __m512i low, high;
                weave(from, row, k - i, first(n - h), low, high);
                pairs* to = out + (c / P * k2 + i / 2) * P + (h - c);
                _mm512_store_si512(to, low);
                _mm512_store_si512(to + 16, high);
            }
}

// b [n, k] to the same.
template <int P = NR>
inline void pack_b_along(const half* b, int64_t row, int64_t k, int64_t n, pairs* out, int64_t k2) {
    for (int64_t c = 0; c < round_up(n, P); c += 16)
        for (int64_t i = 0; i < k; i += 32) {
            const half* from = b + c * row + i;
            __m512i r[16];
            if (n - c >= 16 && k - i >= 32)
                for (int j = 0; j < 16; ++j) r[j] = _mm512_loadu_si512(from + j * row);
            else
                for (int j = 0; j < 16; ++j)
                    r[j] = c + j < n ? _mm512_maskz_loadu_epi16(first(k - i), from + j * row) : _mm512_setzero_si512();
            transpose(r, out + (c / P * k2 + i / 2) * P + c % P, P);
        }
}

// a [k, m] to rows of pairs [m, out_row], zeros up to a multiple of 16 pairs.
inline void pack_a_down(const half* a, int64_t row, int64_t k, int64_t m, pairs* out, int64_t out_row) {
    for (int64_t i = 0; i < k; i += 32)
        for (int64_t c = 0; c < m; c += 32) {
            __m512i low[16], high[16];
            for (int j = 0; j < 16; ++j) {
                const half* from = a + (i + 2 * j) * row + c;
                _mm_prefetch(from + 32 * row, _MM_HINT_T0);
                _mm_prefetch(from + 33 * row, _MM_HINT_T0);
                weave(from, row, k - i - 2 * j, first(m - c), low[j], high[j]);
            }
            transpose(low, out + c * out_row + i / 2, out_row);
            transpose(high, out + (c + 16) * out_row + i / 2, out_row);
        }
}

// --------------------------------------------------------------------------------------------------------- the kernel

struct Tile {
    const half* a;  // its rows, a_row elements apart
    int64_t a_row;
    const pairs* b;  // its panel
    int64_t k;
    bool begins, ends;  // whether these are the first, the last of all k; in between, sums are in `sums`
    float* sums;
    half* c;
    int64_t c_row, cols;
    const half* bias;
    bool add;  // to what c holds
};

inline __m512 widen(const half* p, int64_t n) {
    __m256i x = _mm256_maskz_loadu_epi16(__mmask16(first(std::min<int64_t>(n, 16))), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

template <int M>
inline void dot(__m512 (&sum)[M][4], const half* a, int64_t a_row, const pairs* b) {
    __m512i right[4];
    for (int j = 0; j < 4; ++j) right[j] = _mm512_load_si512(b + 16 * j);
    for (int m = 0; m < M; ++m) {
        int word;
        std::memcpy(&word, a + m * a_row, 4);
        __m512i left = _mm512_set1_epi32(word);
        for (int j = 0; j < 4; ++j) sum[m][j] = _mm512_dpbf16_ps(sum[m][j], (__m512bh)left, (__m512bh)right[j]);
    }
}

template <int M>
void tile(const Tile& t, Ahead& outer) {
    __m512 sum[M][4];
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < 4; ++j)
            sum[m][j] = t.begins ? _mm512_setzero_ps() : _mm512_load_ps(t.sums + m * NR + 16 * j);
    if (t.ends)
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < 2; ++j) _mm_prefetch(t.c + m * t.c_row + 32 * j, _MM_HINT_ET0);
    const half* a = t.a;
    const pairs* b = t.b;
    int64_t k = t.k;
    Ahead ahead = outer;  // a copy, which the compiler can keep in registers
    for (; k >= 2 * EVERY; k -= 2 * EVERY, a += 2 * EVERY, b += EVERY * NR) {
        ahead.ask();
        for (int i = 0; i < EVERY; ++i) dot<M>(sum, a + 2 * i, t.a_row, b + i * NR);
    }
    outer = ahead;
    for (; k >= 2; k -= 2, a += 2, b += NR) dot<M>(sum, a, t.a_row, b);
    if (k) {  // the partner of an odd last k lies outside a, and may be anything: NaN even
        half last[M][2] = {};
        for (int m = 0; m < M; ++m) last[m][0] = a[m * t.a_row];
        dot<M>(sum, last[0], 2, b);
    }
    if (!t.ends) {
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < 4; ++j) _mm512_store_ps(t.sums + m * NR + 16 * j, sum[m][j]);
        return;
    }
    if (t.bias)
        for (int j = 0; j < 4; ++j) {
            __m512 x = widen(t.bias + 16 * j, t.cols - 16 * j);
            for (int m = 0; m < M; ++m) sum[m][j] = _mm512_add_ps(sum[m][j], x);
        }
    for (int m = 0; m < M; ++m) {
        half* c = t.c + m * t.c_row;
        if (t.add)
            for (int j = 0; j < 4; ++j) sum[m][j] = _mm512_add_ps(sum[m][j], widen(c + 16 * j, t.cols - 16 * j));
        for (int j = 0; j < 2; ++j) {
            __m512i x = (__m512i)_mm512_cvtne2ps_pbh(sum[m][2 * j + 1], sum[m][2 * j]);
            if (t.cols >= NR)
                _mm512_storeu_si512(c + 32 * j, x);
            else
                _mm512_mask_storeu_epi16(c + 32 * j, first(t.cols - 32 * j), x);
        }
    }
}

inline void tile(int64_t rows, const Tile& t, Ahead& ahead) {
    switch (rows) {
        case 6: return tile<6>(t, ahead);
        case 5: return tile<5>(t, ahead);
        case 4: return tile<4>(t, ahead);
        case 3: return tile<3>(t, ahead);
        case 2: return tile<2>(t, ahead);
        default: return tile<1>(t, ahead);
    }
}

// --------------------------------------------------------------------------------------------------------- the product

struct Matrix {
    const half* at;
    int64_t row;  // elements from row to row
    bool down;    // whether k runs down: a [k, m], b [k, n]; otherwise along: a [m, k], b [n, k]
};

struct Out {
    half* c;
    int64_t row;
    const half* bias;  // [n] or null
    bool add;
    float* row_sums;  // [m] or null: the sum of a over k, wanted when that is a bias's gradient; a must lie down
    int64_t narrowest = NR;  // columns of a block, but where c has fewer
};

// The sum of each packed row, by dot products with ones: one more for every n, where a pass of its own reads a again.
inline void sum_rows(const pairs* a, int64_t a_row, int64_t k2, int64_t m, float* out, bool begins) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int64_t i = 0; i < m; ++i) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < k2; k += 16)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_load_si512(a + i * a_row + k), ones);
        out[i] = _mm512_reduce_add_ps(sum) + (begins ? 0 : out[i]);
    }
}

// Columns and rows of a block of c.
struct Cut {
    int64_t nb, mb;
};

// Blocks are dealt out in turn, as many to every thread; one that is larger than the others, or one too many, keeps all threads
// waiting for the one that has it. So of several cuts the one is taken whose busiest thread has least to do.
inline Cut cut(int64_t m, int64_t n, int64_t kc, int64_t steps, bool a_down, int64_t narrowest, int64_t threads) {
    constexpr int64_t PACKED = 16;  // to pack a number takes about as long as to multiply it so many times
    // Half the second-level cache is for b; where sums wait or a is packed as well, a quarter.
    bool crowded = steps > 1 || a_down;
    int64_t widest = crowded ? 256 : std::max<int64_t>((1 << 18) / kc / NR * NR, 256);
    int64_t tallest = crowded ? 512 : 384, unit = a_down ? 32 : MR, more = std::min<int64_t>(threads, 16), least = INT64_MAX;
    Cut best{};
    for (int64_t wide = ceil_div(n, widest), most = wide + more; wide <= most; ++wide) {
        int64_t nb = std::max(round_up(ceil_div(n, wide), NR), narrowest), across = ceil_div(n, nb);
        for (int64_t tall = ceil_div(m, tallest), last = tall + more; tall <= last; ++tall) {
            int64_t mb = round_up(ceil_div(m, tall), unit), down = ceil_div(m, mb), tasks = across * down;
            int64_t mine = ceil_div(tasks, threads), packs = steps > 1 ? mine : ceil_div(mine, down);
            int64_t work = mine * mb * nb + PACKED * (packs * nb + (a_down ? mine * mb : 0));
            if (work < least) least = work, best = {nb, mb};
            if (tasks >= 8 * threads) break;  // one more or less matters little then
        }
        if (nb == narrowest || across >= 8 * threads) break;
    }
    return best;
}

// `after(row, rows, col, cols)` is called for every strip of c when it is done and still in cache.
template <class After>
void product(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, Out out, After after) {
    int64_t steps = k <= WHOLE ? 1 : ceil_div(k, STEP), kc = round_up(ceil_div(k, steps), 2);
    // Packed rows of a are a line longer than they need be, so as not to compete for the same sets of the cache.
    int64_t k2 = round_up(kc, 32) / 2, a_row = k2 + 16;
    int64_t threads = omp_get_max_threads();
    auto [nb, mb] = cut(m, n, kc, steps, a.down, out.narrowest, threads);
    int64_t per = ceil_div(m, mb), tasks = per * ceil_div(n, nb);
#pragma omp parallel
    {
        static thread_local Scratch scratch;
        size_t b_bytes = 4 * k2 * nb, a_bytes = a.down ? 4 * a_row * (STRIP + 32) : 0;
        char* base = scratch.take(b_bytes + a_bytes + (steps > 1 ? 4 * round_up(mb, MR) * nb : 0));
        pairs* b_packed = reinterpret_cast<pairs*>(base);
        pairs* a_packed = reinterpret_cast<pairs*>(base + b_bytes);
        float* sums = reinterpret_cast<float*>(base + b_bytes + a_bytes);
        int64_t holds = -1;
        int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t task = me * tasks / team, end = (me + 1) * tasks / team; task < end; ++task) {
            int64_t n0 = task / per * nb, m0 = task % per * mb;
            int64_t cols = std::min(nb, n - n0), rows = std::min(mb, m - m0);
            for (int64_t s = 0; s < steps; ++s) {
                int64_t k0 = s * kc, kk = std::min(kc, k - k0), next_k = std::min(kc, k - k0 - kk);
                if (steps > 1 || holds != n0) {
                    if (b.down)
                        pack_b_down(b.at + k0 * b.row + n0, b.row, kk, cols, b_packed, k2);
                    else
                        pack_b_along(b.at + n0 * b.row + k0, b.row, kk, cols, b_packed, k2);
                    holds = n0;
                }
                Ahead ahead, then;
                for (int64_t i = 0; i < rows; i += MR) {
                    Tile t{a.at + (m0 + i) * a.row + k0, a.row, nullptr, kk, s == 0, s == steps - 1};
                    t.c_row = out.row, t.add = out.add;
                    int64_t tall = std::min<int64_t>(MR, rows - i);
                    if (!a.down) {
                        ahead = Ahead(t.a + MR * a.row, a.row, std::min<int64_t>(MR, rows - i - MR), kk);
                    } else {
                        if (i % STRIP == 0) {
                            int64_t strip = std::min(STRIP, rows - i), left = m - m0 - i - STRIP;
                            const half* from = a.at + k0 * a.row + m0 + i;
                            pack_a_down(from, a.row, kk, strip, a_packed, a_row);
                            if (out.row_sums && n0 == 0)
                                sum_rows(a_packed, a_row, round_up(kk, 32) / 2, strip, out.row_sums + m0 + i, s == 0);
                            if (i + STRIP < rows || (next_k == 0 && left > 0)) {
                                ahead = Ahead(from + STRIP, a.row, kk, std::min(STRIP, left));
                            } else {
                                ahead = Ahead(a.at + (k0 + kk) * a.row + m0, a.row, next_k, std::min(STRIP, rows));
                                if (b.down) then = Ahead(b.at + (k0 + kk) * b.row + n0, b.row, next_k, cols);
                            }
                        }
                        t.a = reinterpret_cast<const half*>(a_packed + i % STRIP * a_row), t.a_row = 2 * a_row;
                        t.k = round_up(kk, 2);  // packed, an odd last k has zero for its partner
                    }
                    for (int64_t j = 0; j < cols; j += NR) {
                        if (ahead.rows <= 0) std::swap(ahead, then);
                        t.b = b_packed + j * k2, t.sums = sums + i * nb + j * MR;
                        t.c = out.c + (m0 + i) * out.row + n0 + j, t.cols = cols - j;
                        t.bias = out.bias ? out.bias + n0 + j : nullptr;
                        tile(tall, t, ahead);
                    }
                    if (t.ends) after(m0 + i, tall, n0, cols);
                }
            }
        }
    }
}

}  // namespace gemm

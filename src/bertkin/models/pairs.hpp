// What words.hpp is made of in bfloat16, on processors with AVX-512 bf16 dot products. Those take pairs: a word holds what
// stands at 2k and 2k + 1 of the summed dimension.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tiles.hpp"
#include "vectors.hpp"

#ifdef HAVE_BF16_DOT
namespace {

typedef uint32_t pair;

template <int M, int N>
inline void tile(const pair* a, int64_t a_row, const pair* b, int64_t b_row, float* c, int64_t c_row, int k2,
                 bool add) {
    __m512 acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = add ? _mm512_loadu_ps(c + m * c_row + n * W) : _mm512_setzero_ps();
    for (int k = 0; k < k2; ++k) {
        __m512i right[N];
        for (int n = 0; n < N; ++n) right[n] = _mm512_loadu_si512(b + k * b_row + n * W);
        for (int m = 0; m < M; ++m) {
            __m512i left = _mm512_set1_epi32(int(a[m * a_row + k]));
            for (int n = 0; n < N; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], (__m512bh)left, (__m512bh)right[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + m * c_row + n * W, acc[m][n]);
}

#ifdef HAVE_TILES
// The same by tiles, from an a whose pairs lie along k, k2 a multiple of 16; reads and writes rows up to a multiple of 16.
inline void tiled(int m, int n, int k2, const pair* a, int64_t a_row, const pair* b, int64_t b_row, float* c, int64_t c_row,
                  bool add) {
    for (int i = 0; i < m; i += 32)
        for (int j = 0; j < n; j += 32) {
            auto sums = [&](auto tall, auto wide) {
                const pair *left = a + i * a_row, *right = b + j;
                tiles::block<tall(), wide()>(left, 4 * a_row, right, 4 * b_row, 2 * k2, c + i * c_row + j, 4 * c_row, add,
                                              [] {});
            };
            std::integral_constant<int, 1> one;
            std::integral_constant<int, 2> two;
            if (m - i > 16 && n - j > 16)
                sums(two, two);
            else if (m - i > 16)
                sums(two, one);
            else if (n - j > 16)
                sums(one, two);
            else
                sums(one, one);
        }
}
#endif

// 16x16 words transposed in registers: three rounds of interleaving, then lanes put in place.
inline void transpose16(const pair* in, int64_t in_row, pair* out, int64_t out_row) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * in_row);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        _mm512_storeu_si512(out + (i)*out_row, _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_storeu_si512(out + (i + 4) * out_row, _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_storeu_si512(out + (i + 8) * out_row, _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_storeu_si512(out + (i + 12) * out_row, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
}

// Two rows woven into one row of pairs, n elements each.
inline void weave(const bf16* even, const bf16* odd, pair* out, int n) {
    for (int i = 0; i < n; i += W) {
        vu a = __builtin_convertvector(*reinterpret_cast<const vh*>(even + i), vu);
        vu b = __builtin_convertvector(*reinterpret_cast<const vh*>(odd + i), vu);
        *reinterpret_cast<vu*>(out + i) = a | (b << 16);
    }
}

void words_down(const bf16* x, int rows, int cols, pair* out, int64_t x_row) {
    for (int r = 0; r < rows; r += 2) weave(x + r * x_row, x + (r + 1) * x_row, out + int64_t(r / 2) * cols, cols);
}

}  // namespace
#endif

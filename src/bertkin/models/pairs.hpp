// What attention is made of, on processors with AVX-512 bf16 dot products: small products of operands in cache, and the ways
// of laying operands out for them. The dot products take pairs: an operand "in pairs" is [k / 2, n] words that hold rows 2k
// and 2k + 1.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "tiles.hpp"
#include "vectors.hpp"

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

template <int N>
inline void tile_rows(int m, const pair* a, int64_t a_row, const pair* b, int64_t b_row, float* c,
                      int64_t c_row, int k2, bool add) {
    for (; m >= 6; m -= 6, a += 6 * a_row, c += 6 * c_row) tile<6, N>(a, a_row, b, b_row, c, c_row, k2, add);
    switch (m) {
        case 5: tile<5, N>(a, a_row, b, b_row, c, c_row, k2, add); break;
        case 4: tile<4, N>(a, a_row, b, b_row, c, c_row, k2, add); break;
        case 3: tile<3, N>(a, a_row, b, b_row, c, c_row, k2, add); break;
        case 2: tile<2, N>(a, a_row, b, b_row, c, c_row, k2, add); break;
        case 1: tile<1, N>(a, a_row, b, b_row, c, c_row, k2, add); break;
    }
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

// c [m, n] (+)= a [m, 2 k2] b [2 k2, n]; n a multiple of 16, and k2 where tiles are held, which go to the end of 16 rows of
// a and c; the element strides of a count pairs.
void product(int m, int n, int k2, const pair* a, int64_t a_row, const pair* b, int64_t b_row, float* c, int64_t c_row,
             bool add) {
#ifdef HAVE_TILES
    if (tiles::usable()) return tiled(m, n, k2, a, a_row, b, b_row, c, c_row, add);
#endif
    while (n >= 64) {
        tile_rows<4>(m, a, a_row, b, b_row, c, c_row, k2, add);
        n -= 64, b += 64, c += 64;
    }
    switch (n / W) {
        case 3: tile_rows<3>(m, a, a_row, b, b_row, c, c_row, k2, add); break;
        case 2: tile_rows<2>(m, a, a_row, b, b_row, c, c_row, k2, add); break;
        case 1: tile_rows<1>(m, a, a_row, b, b_row, c, c_row, k2, add); break;
    }
}

// A thread's memory, kept between calls.
struct Buffer {
    std::vector<char> bytes;
    size_t at = 0;
    void need(size_t n) {
        at = 0;
        if (bytes.size() < n) bytes.resize(n);
    }
    template <class T>
    T* take(size_t n) {
        size_t start = reinterpret_cast<size_t>(bytes.data());
        at = (start + at + 63) / 64 * 64 - start;
        T* p = reinterpret_cast<T*>(bytes.data() + at);
        at += n * sizeof(T);
        return p;
    }
};
inline Buffer& buffer() {
    static thread_local Buffer one;
    return one;
}

inline int up(int n, int to) { return (n + to - 1) / to * to; }

// Rows of one head, rotated if asked, packed tight as [rows, dim]; rows up to `padded` are zero.
void gather(const bf16* x, int64_t stride, int rows, int padded, int dim, const float* cosine, const float* sine,
            const int32_t* position, bf16* out) {
    int half = dim / 2;
    for (int r = 0; r < rows; ++r) {
        const bf16* from = x + r * stride;
        bf16* to = out + r * dim;
        if (!cosine) {
            std::memcpy(to, from, dim * sizeof(bf16));
            continue;
        }
        const float *c = cosine + int64_t(position[r]) * half, *s = sine + int64_t(position[r]) * half;
        for (int i = 0; i < half; i += W) {
            vf a = load(from + i), b = load(from + half + i), co = load(c + i), si = load(s + i);
            store(to + i, a * co - b * si);
            store(to + half + i, b * co + a * si);
        }
    }
    std::memset(out + int64_t(rows) * dim, 0, size_t(padded - rows) * dim * sizeof(bf16));
}

// float32 [rows, dim] back to the strided bf16 tensor, un-rotated if asked.
void scatter(const float* x, int rows, int dim, const float* cosine, const float* sine, const int32_t* position, bf16* out,
             int64_t stride) {
    int half = dim / 2;
    for (int r = 0; r < rows; ++r) {
        const float* from = x + int64_t(r) * dim;
        bf16* to = out + r * stride;
        if (!cosine) {
            for (int i = 0; i < dim; i += W) store(to + i, load(from + i));
            continue;
        }
        const float *c = cosine + int64_t(position[r]) * half, *s = sine + int64_t(position[r]) * half;
        for (int i = 0; i < half; i += W) {
            vf a = load(from + i), b = load(from + half + i), co = load(c + i), si = load(s + i);
            store(to + i, a * co + b * si);
            store(to + half + i, b * co - a * si);
        }
    }
}

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

// [rows, dim] -> pairs along dim, transposed: [dim / 2, rows]; rows a multiple of 16, dim of 32.
void pairs_across(const bf16* x, int rows, int dim, pair* out) {
    const pair* in = reinterpret_cast<const pair*>(x);
    for (int r = 0; r < rows; r += 16)
        for (int c = 0; c < dim / 2; c += 16) transpose16(in + int64_t(r) * (dim / 2) + c, dim / 2, out + int64_t(c) * rows + r, rows);
}

// Two rows woven into one row of pairs, n elements each.
inline void weave(const bf16* even, const bf16* odd, pair* out, int n) {
    for (int i = 0; i < n; i += W) {
        vu a = __builtin_convertvector(*reinterpret_cast<const vh*>(even + i), vu);
        vu b = __builtin_convertvector(*reinterpret_cast<const vh*>(odd + i), vu);
        *reinterpret_cast<vu*>(out + i) = a | (b << 16);
    }
}

// The first `cols` of [rows, x_row] -> pairs along rows: [rows / 2, cols]; rows even.
void pairs_down(const bf16* x, int rows, int cols, pair* out, int64_t x_row) {
    for (int r = 0; r < rows; r += 2) weave(x + r * x_row, x + (r + 1) * x_row, out + int64_t(r / 2) * cols, cols);
}
void pairs_down(const bf16* x, int rows, int dim, pair* out) { pairs_down(x, rows, dim, out, dim); }

}  // namespace

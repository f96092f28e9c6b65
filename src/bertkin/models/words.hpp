// What attention is made of: small products of operands in cache, and the ways of laying operands out for them.
//
// Products read words of 32 bits along the dimension they sum over: a number of float32, on any processor, or a pair of bfloat16
// (pairs.hpp). An operand "in words" is [k, n] of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "pairs.hpp"
#include "vectors.hpp"

namespace {

template <class T>
struct Words;
template <>
struct Words<float> {
    typedef float type;
    static constexpr int EACH = 1;  // numbers in a word
};
#ifdef HAVE_BF16_DOT
template <>
struct Words<bf16> {
    typedef pair type;
    static constexpr int EACH = 2;
};
#endif

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
template <class T>
void gather(const T* x, int64_t stride, int rows, int padded, int dim, const float* cosine, const float* sine,
            const int32_t* position, T* out) {
    int half = dim / 2;
    for (int r = 0; r < rows; ++r) {
        const T* from = x + r * stride;
        T* to = out + r * dim;
        if (!cosine) {
            std::memcpy(to, from, dim * sizeof(T));
            continue;
        }
        const float *c = cosine + int64_t(position[r]) * half, *s = sine + int64_t(position[r]) * half;
        for (int i = 0; i < half; i += W) {
            vf a = load(from + i), b = load(from + half + i), co = load(c + i), si = load(s + i);
            store(to + i, a * co - b * si);
            store(to + half + i, b * co + a * si);
        }
    }
    std::memset(out + int64_t(rows) * dim, 0, size_t(padded - rows) * dim * sizeof(T));
}

// float32 [rows, dim] back to the strided tensor, un-rotated if asked.
template <class T>
void scatter(const float* x, int rows, int dim, const float* cosine, const float* sine, const int32_t* position, T* out,
             int64_t stride) {
    int half = dim / 2;
    for (int r = 0; r < rows; ++r) {
        const float* from = x + int64_t(r) * dim;
        T* to = out + r * stride;
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

// ----------------------------------------------------------------------------------------------------------- float32

// The loops are unrolled by order: sums that an index chooses would live in memory.
template <int M, int N>
inline void tile(const float* a, int64_t a_row, const float* b, int64_t b_row, float* c, int64_t c_row, int k, bool add) {
    vf acc[M][N];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[m][n] = add ? load(c + m * c_row + n * W) : vf{};
    for (int i = 0; i < k; ++i) {
        vf right[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) right[n] = load(b + i * b_row + n * W);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[m][n] += a[m * a_row + i] * right[n];
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(c + m * c_row + n * W, acc[m][n]);
}

inline void transpose16(const float* in, int64_t in_row, float* out, int64_t out_row) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) out[j * out_row + i] = in[i * in_row + j];
}

inline void words_down(const float* x, int rows, int cols, float* out, int64_t x_row) {
    for (int r = 0; r < rows; ++r) std::memcpy(out + int64_t(r) * cols, x + r * x_row, cols * sizeof(float));
}

// ------------------------------------------------------------------------------------------------------------- of both

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4;  // vectors that each of six rows has room to sum in: of 32 registers, or of 16
#else
constexpr int WIDEST = 2;
#endif

template <int N, class Word>
inline void tile_rows(int m, const Word* a, int64_t a_row, const Word* b, int64_t b_row, float* c, int64_t c_row, int k,
                      bool add) {
    for (; m >= 6; m -= 6, a += 6 * a_row, c += 6 * c_row) tile<6, N>(a, a_row, b, b_row, c, c_row, k, add);
    switch (m) {
        case 5: tile<5, N>(a, a_row, b, b_row, c, c_row, k, add); break;
        case 4: tile<4, N>(a, a_row, b, b_row, c, c_row, k, add); break;
        case 3: tile<3, N>(a, a_row, b, b_row, c, c_row, k, add); break;
        case 2: tile<2, N>(a, a_row, b, b_row, c, c_row, k, add); break;
        case 1: tile<1, N>(a, a_row, b, b_row, c, c_row, k, add); break;
    }
}

// c [m, n] (+)= a [m, k] b [k, n], k counted in words, as are the strides of a; n a multiple of 16, and k where tiles are held,
// which go to the end of 16 rows of a and c.
template <class Word>
void product(int m, int n, int k, const Word* a, int64_t a_row, const Word* b, int64_t b_row, float* c, int64_t c_row,
             bool add) {
#ifdef HAVE_TILES
    if constexpr (std::is_same_v<Word, pair>)
        if (tiles::usable()) return tiled(m, n, k, a, a_row, b, b_row, c, c_row, add);
#endif
    for (; n >= WIDEST * W; n -= WIDEST * W, b += WIDEST * W, c += WIDEST * W)
        tile_rows<WIDEST>(m, a, a_row, b, b_row, c, c_row, k, add);
    for (; n >= 2 * W; n -= 2 * W, b += 2 * W, c += 2 * W) tile_rows<2>(m, a, a_row, b, b_row, c, c_row, k, add);
    for (; n > 0; n -= W, b += W, c += W) tile_rows<1>(m, a, a_row, b, b_row, c, c_row, k, add);
}

// [rows, dim] -> words along dim, transposed: [dim / EACH, rows]; rows and words a multiple of 16.
template <class T>
void words_across(const T* x, int rows, int dim, typename Words<T>::type* out) {
    typedef typename Words<T>::type Word;
    int words = dim / Words<T>::EACH;
    const Word* in = reinterpret_cast<const Word*>(x);
    for (int r = 0; r < rows; r += 16)
        for (int c = 0; c < words; c += 16) transpose16(in + int64_t(r) * words + c, words, out + int64_t(c) * rows + r, rows);
}

// The first `cols` of [rows, x_row] -> words along rows: [rows / EACH, cols]; rows a multiple of EACH.
template <class T>
void words_down(const T* x, int rows, int cols, typename Words<T>::type* out) {
    words_down(x, rows, cols, out, cols);
}

}  // namespace

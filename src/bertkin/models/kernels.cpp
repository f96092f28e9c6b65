// Fused CPU kernels: what lies between the matrix products of a Transformer's training step.
//
// Each kernel reads and writes every tensor once, computes in float32 and stores in the tensor's own type (float32 or
// bfloat16, picked by the first argument: 0 or 1). Written with GCC/Clang vector extensions, so any processor can
// compile it; the attention kernel alone needs AVX-512 with bf16 dot products and is left out elsewhere.
//
// Nothing here depends on the order in which threads finish, except where a comment says how it is made not to.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <omp.h>
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>

#include "gemm.hpp"
#define HAVE_BF16_DOT 1
#endif

namespace {

// ---------------------------------------------------------------------------------------------------- vectors of 16

constexpr int W = 16;
typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

struct bf16 {
    uint16_t bits;
};

inline vf splat(float x) { return vf{} + x; }

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline vf load(const bf16* p) {
    vu wide = __builtin_convertvector(*reinterpret_cast<const vh*>(p), vu) << 16;
    return reinterpret_cast<vf&>(wide);
}
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }
inline void store(bf16* p, vf x) {
#ifdef HAVE_BF16_DOT
    __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &half, 32);
#else
    vu u = reinterpret_cast<vu&>(x);
    u = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // round to nearest even
    *reinterpret_cast<vh*>(p) = __builtin_convertvector(u, vh);
#endif
}
// The last n < 16 elements of a row; missing lanes read as `fill`.
template <class T>
inline vf load(const T* p, int n, float fill) {
    if (n >= W) return load(p);
    T part[W] = {};
    std::memcpy(part, p, n * sizeof(T));
    vf x = load(part);
    for (int i = n; i < W; ++i) x[i] = fill;
    return x;
}
template <class T>
inline void store(T* p, vf x, int n) {
    if (n >= W) return store(p, x);
    T part[W];
    store(part, x);
    std::memcpy(p, part, n * sizeof(T));
}

inline float sum(vf x) {
    float total = 0;
    for (int i = 0; i < W; ++i) total += x[i];
    return total;
}
inline float largest(vf x) {
    float top = x[0];
    for (int i = 1; i < W; ++i) top = std::max(top, x[i]);
    return top;
}
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf smaller(vf a, vf b) { return a < b ? a : b; }

// e^x to about 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, then n into the exponent.
inline vf exponential(vf x) {
    x = smaller(larger(x, splat(-87.3f)), splat(88.7f));
    vf shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the addition rounds to the nearest integer
    vi n = reinterpret_cast<vi&>(shifted) - 0x4b400000;
    vf whole = __builtin_convertvector(n, vf);
    vf r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi scale = (n + 127) << 23;
    return p * reinterpret_cast<vf&>(scale);
}

// The error function (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7); also hands back e^(-x^2).
inline vf error_function(vf x, vf& gaussian) {
    vf size = x < 0.0f ? -x : x;
    vf t = 1.0f / (1.0f + 0.3275911f * size);
    gaussian = exponential(-x * x);
    vf p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf y = 1.0f - p * t * gaussian;
    return x < 0.0f ? -y : y;
}

constexpr float ROOT_HALF = 0.70710678f, ROOT_TWO_PI = 0.39894228f;

inline vf gelu(vf x) {
    vf g;
    return 0.5f * x * (1.0f + error_function(x * ROOT_HALF, g));
}
inline vf gelu_slope(vf x, vf& value) {
    vf g;
    vf cdf = 0.5f * (1.0f + error_function(x * ROOT_HALF, g));
    value = x * cdf;
    return cdf + x * g * ROOT_TWO_PI;
}

// ------------------------------------------------------------------------------------------- residual and layer norm

template <class T>
void add_norm(const T* residual, const T* x, const T* weight, const T* bias, T* total, T* out, float* mean, float* scale,
              int64_t rows, int cols, float eps) {
#pragma omp parallel
    {
        std::vector<float> line(cols + W);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            vf s{}, q{};
            for (int c = 0; c < cols; c += W) {
                vf a = load(residual + r * cols + c, cols - c, 0);
                if (x) {
                    a += load(x + r * cols + c, cols - c, 0);
                    store(total + r * cols + c, a, cols - c);
                    // What is normalised is what was stored, so that the backward pass sees the same numbers.
                    a = load(total + r * cols + c, cols - c, 0);
                }
                store(line.data() + c, a);
                s += a;
            }
            float mu = sum(s) / cols;
            for (int c = 0; c < cols; c += W) {
                vf d = load(line.data() + c) - mu;
                if (cols - c < W)
                    for (int i = cols - c; i < W; ++i) d[i] = 0;
                q += d * d;
            }
            float rstd = 1.0f / std::sqrt(sum(q) / cols + eps);
            mean[r] = mu;
            scale[r] = rstd;
            for (int c = 0; c < cols; c += W) {
                vf y = (load(line.data() + c) - mu) * rstd * load(weight + c, cols - c, 0);
                if (bias) y += load(bias + c, cols - c, 0);
                store(out + r * cols + c, y, cols - c);
            }
        }
    }
}

// Each thread sums its own rows' share of d_weight and d_bias; the shares are added in thread order.
template <class T>
void add_norm_backward(const T* d_out, const T* d_total, const T* total, const T* weight, const float* mean,
                       const float* scale, T* d_in, float* d_weight, float* d_bias, int64_t rows, int cols) {
    int threads = omp_get_max_threads(), wide = (cols + W - 1) / W * W;
    std::vector<float> share(size_t(threads) * 2 * wide, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float* dw = share.data() + size_t(omp_get_thread_num()) * 2 * wide;
        float* db = dw + wide;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            vf a{}, b{};
            for (int c = 0; c < cols; c += W) {
                vf g = load(d_out + r * cols + c, cols - c, 0);
                vf xhat = (load(total + r * cols + c, cols - c, mean[r]) - mean[r]) * scale[r];
                store(dw + c, load(dw + c) + g * xhat);
                store(db + c, load(db + c) + g);
                g *= load(weight + c, cols - c, 0);
                a += g;
                b += g * xhat;
            }
            float ma = sum(a) / cols, mb = sum(b) / cols;
            for (int c = 0; c < cols; c += W) {
                vf g = load(d_out + r * cols + c, cols - c, 0) * load(weight + c, cols - c, 0);
                vf xhat = (load(total + r * cols + c, cols - c, mean[r]) - mean[r]) * scale[r];
                vf d = scale[r] * (g - ma - xhat * mb);
                if (d_total) d += load(d_total + r * cols + c, cols - c, 0);
                store(d_in + r * cols + c, d, cols - c);
            }
        }
    }
    for (int c = 0; c < cols; ++c) {
        float w = 0, b = 0;
        for (int t = 0; t < threads; ++t) {
            w += share[size_t(t) * 2 * wide + c];
            b += share[size_t(t) * 2 * wide + wide + c];
        }
        d_weight[c] = w;
        if (d_bias) d_bias[c] = b;
    }
}

// ------------------------------------------------------------------------------------------------------ activations

template <class T>
void gelu_all(const T* x, T* y, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) store(y + i, gelu(load(x + i, n - i, 0)), n - i);
}

template <class T>
void gelu_all_backward(const T* dy, const T* x, T* dx, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        vf value, slope = gelu_slope(load(x + i, n - i, 0), value);
        store(dx + i, load(dy + i, n - i, 0) * slope, n - i);
    }
}

// x [rows, 2 cols]: gelu of the first half times the second.
template <class T>
void geglu_all(const T* x, T* y, int64_t rows, int cols) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < cols; c += W) {
            const T* p = x + r * 2 * cols + c;
            store(y + r * cols + c, gelu(load(p, cols - c, 0)) * load(p + cols, cols - c, 0), cols - c);
        }
}

template <class T>
void geglu_all_backward(const T* dy, const T* x, T* dx, int64_t rows, int cols) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < cols; c += W) {
            const T* p = x + r * 2 * cols + c;
            T* d = dx + r * 2 * cols + c;
            vf g = load(dy + r * cols + c, cols - c, 0), gate = load(p + cols, cols - c, 0);
            vf value, slope = gelu_slope(load(p, cols - c, 0), value);
            store(d, g * gate * slope, cols - c);
            store(d + cols, g * value, cols - c);
        }
}

// Sum over rows, for a bias: threads own columns, so the order of addition is fixed.
template <class T>
void column_sum(const T* x, float* out, int64_t rows, int cols) {
    int blocks = (cols + W - 1) / W;
#pragma omp parallel
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        int from = int64_t(blocks) * t / n * W, to = std::min<int>(int64_t(blocks) * (t + 1) / n * W, cols);
        std::vector<float> line(std::max(to - from, 0) + W, 0.0f);
        for (int64_t r = 0; r < rows; ++r)
            for (int c = from; c < to; c += W)
                store(line.data() + c - from, load(line.data() + c - from) + load(x + r * cols + c, cols - c, 0));
        if (to > from) std::memcpy(out + from, line.data(), (to - from) * sizeof(float));
    }
}

// ------------------------------------------------------------------------------------------------------- cross entropy

// logits [rows, cols] (+ bias) become their own gradient: scale * (softmax * (1 + 2 z log-partition) - one-hot), if asked.
template <class T>
void cross_entropy(T* logits, const T* bias, const int64_t* target, float* loss, uint8_t* correct, int64_t rows, int cols,
                   float z, float scale, int want_gradient) {
#pragma omp parallel
    {
        std::vector<float> line(cols + W);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            T* row = logits + r * cols;
            vf best = splat(-INFINITY);
            for (int c = 0; c < cols; c += W) {
                vf x = load(row + c, cols - c, -INFINITY);
                if (bias) x += load(bias + c, cols - c, 0);
                store(line.data() + c, x);
                best = larger(best, x);
            }
            float top = largest(best), own = line[target[r]];
            vf s{};  // the padded lanes add e^-87 each: nothing in float32
            for (int c = 0; c < cols; c += W) {
                vf p = exponential(load(line.data() + c) - top);
                store(line.data() + c, p);
                s += p;
            }
            float all = sum(s), log_partition = top + std::log(all);
            loss[r] = log_partition - own + z * log_partition * log_partition;
            correct[r] = own >= top;
            if (!want_gradient) continue;
            float factor = scale * (1 + 2 * z * log_partition);
            line[target[r]] -= scale * all / factor;
            for (int c = 0; c < cols; c += W) store(row + c, load(line.data() + c) * (factor / all), cols - c);
        }
    }
}

// --------------------------------------------------------------------------------------------------------- embeddings

// table[ids[t]] += rows[t]: thread n owns the ids with id % threads == n, so each row is summed in token order.
template <class T>
void scatter_add(const int64_t* ids, const T* rows, T* table, int64_t n, int cols) {
#pragma omp parallel
    {
        int me = omp_get_thread_num(), threads = omp_get_num_threads();
        for (int64_t t = 0; t < n; ++t) {
            if (ids[t] % threads != me) continue;
            T* to = table + ids[t] * cols;
            for (int c = 0; c < cols; c += W)
                store(to + c, load(to + c, cols - c, 0) + load(rows + t * cols + c, cols - c, 0), cols - c);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- optimiser

// AdamW (Loshchilov and Hutter 2019) on float32 masters; `copy`, if given, receives the new weights in T.
template <class T>
void adamw(float* weight, float* m, float* v, const T* gradient, T* copy, int64_t n, float lr, float beta1, float beta2,
           float eps, float decay, float correct1, float correct2, float clip) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        int left = std::min<int64_t>(n - i, W);
        vf g = load(gradient + i, left, 0) * clip;
        vf a = load(m + i, left, 0), b = load(v + i, left, 0), w = load(weight + i, left, 0);
        a = beta1 * a + (1 - beta1) * g;
        b = beta2 * b + (1 - beta2) * g * g;
        vf root = b * correct2;
        for (int k = 0; k < W; ++k) root[k] = std::sqrt(root[k]);
        w -= lr * decay * w + lr * correct1 * a / (root + eps);
        store(m + i, a, left);
        store(v + i, b, left);
        store(weight + i, w, left);
        if (copy) store(copy + i, w, left);
    }
}

// Muon's first half: the momentum, and in T what is to be made orthogonal, momentum looked ahead by one gradient.
template <class T>
void muon_momentum(float* first, const T* gradient, T* ahead, int64_t n, float momentum, float clip) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        int left = std::min<int64_t>(n - i, W);
        vf g = load(gradient + i, left, 0) * clip, m = load(first + i, left, 0);
        m = momentum * m + (1 - momentum) * g;
        store(first + i, m, left);
        store(ahead + i, momentum * m + (1 - momentum) * g, left);
    }
}

// Muon's second half: the master takes its step, and the model a copy.
template <class T>
void muon_apply(float* weight, const T* update, T* copy, int64_t n, float lr, float keep) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        int left = std::min<int64_t>(n - i, W);
        vf w = load(weight + i, left, 0) * keep - lr * load(update + i, left, 0);
        store(weight + i, w, left);
        store(copy + i, w, left);
    }
}

// Squares are summed in blocks of fixed size and the blocks in order, whatever the number of threads.
template <class T>
double square_sum(const T* x, int64_t n) {
    constexpr int64_t BLOCK = 1 << 14;
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
    std::vector<double> part(blocks);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < blocks; ++k) {
        vf s{};
        for (int64_t i = k * BLOCK, end = std::min(n, (k + 1) * BLOCK); i < end; i += W) {
            vf a = load(x + i, std::min<int64_t>(end - i, W), 0);
            s += a * a;
        }
        part[k] = sum(s);
    }
    double total = 0;
    for (double p : part) total += p;
    return total;
}

#ifdef HAVE_BF16_DOT
// ---------------------------------------------------------------------------------------------------------- attention
//
// One task is one head of one sequence. Everything it needs fits in the second-level cache, so the scores never reach
// memory. bf16 dot products take pairs: an operand "in pairs" is [k / 2, n] words that hold rows 2k and 2k + 1.

typedef uint32_t pair;

template <int M, int N>
inline void tile(const pair* a, int64_t a_row, int64_t a_col, const pair* b, int64_t b_row, float* c, int64_t c_row, int k2,
                 bool add) {
    __m512 acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = add ? _mm512_loadu_ps(c + m * c_row + n * W) : _mm512_setzero_ps();
    for (int k = 0; k < k2; ++k) {
        __m512i right[N];
        for (int n = 0; n < N; ++n) right[n] = _mm512_loadu_si512(b + k * b_row + n * W);
        for (int m = 0; m < M; ++m) {
            __m512i left = _mm512_set1_epi32(int(a[m * a_row + k * a_col]));
            for (int n = 0; n < N; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], (__m512bh)left, (__m512bh)right[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + m * c_row + n * W, acc[m][n]);
}

template <int N>
inline void tile_rows(int m, const pair* a, int64_t a_row, int64_t a_col, const pair* b, int64_t b_row, float* c,
                      int64_t c_row, int k2, bool add) {
    for (; m >= 6; m -= 6, a += 6 * a_row, c += 6 * c_row) tile<6, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add);
    switch (m) {
        case 5: tile<5, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 4: tile<4, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 3: tile<3, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 2: tile<2, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 1: tile<1, N>(a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
    }
}

// c [m, n] (+)= a [m, 2 k2] b [2 k2, n]; n a multiple of 16; the element strides of a count pairs.
void product(int m, int n, int k2, const pair* a, int64_t a_row, int64_t a_col, const pair* b, int64_t b_row, float* c,
             int64_t c_row, bool add) {
    while (n >= 64) {
        tile_rows<4>(m, a, a_row, a_col, b, b_row, c, c_row, k2, add);
        n -= 64, b += 64, c += 64;
    }
    switch (n / W) {
        case 3: tile_rows<3>(m, a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 2: tile_rows<2>(m, a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
        case 1: tile_rows<1>(m, a, a_row, a_col, b, b_row, c, c_row, k2, add); break;
    }
}

struct Buffer {
    std::vector<char> bytes;
    template <class T>
    T* take(size_t& at, size_t n) {
        at = (at + 63) / 64 * 64;
        T* p = reinterpret_cast<T*>(bytes.data() + at);
        at += n * sizeof(T);
        return p;
    }
};

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

// [rows, dim] -> pairs along rows: [rows / 2, dim]; rows even.
void pairs_down(const bf16* x, int rows, int dim, pair* out) {
    for (int r = 0; r < rows; r += 2) weave(x + int64_t(r) * dim, x + int64_t(r + 1) * dim, out + int64_t(r / 2) * dim, dim);
}

struct Heads {  // one of q, k, v (or a gradient): element [token, head, i] is at token * stride + head * dim + i
    const bf16* data;
    int64_t stride;
};

struct Rule {
    int window, causal;  // a query at i sees keys at j with |i - j| <= window (if >= 0) and j <= i (if causal)
    int first(int i) const { return window >= 0 ? std::max(0, i - window) : 0; }
    int last(int i, int keys) const {
        int end = window >= 0 ? std::min(keys, i + window + 1) : keys;
        return causal ? std::min(end, i + 1) : end;
    }
};

constexpr int BLOCK = 48;  // queries (or keys) handled at a time: a multiple of the tile's 6 rows and of 16

struct Shape {
    int heads, dim;
    float scale;
    Rule rule;
    const float *cosine, *sine;
    const int32_t* position;  // of every token in its sequence
};

void attention_task(const Shape& s, Heads q, Heads k, Heads v, const int32_t* q_position, int queries, int keys, int key_at,
                    bf16* out, int64_t out_stride, float* lse, int64_t lse_stride, Buffer& buffer) {
    int kp = up(keys, 32), dim = s.dim;
    size_t at = 0, need = size_t(kp) * dim * 8 + size_t(BLOCK) * (kp * 6 + dim * 8) + size_t(up(queries, 16)) * dim * 2 + 4096;
    if (buffer.bytes.size() < need) buffer.bytes.resize(need);
    bf16* rows = buffer.take<bf16>(at, size_t(kp) * dim);
    pair* kt = buffer.take<pair>(at, size_t(dim / 2) * kp);
    pair* vp = buffer.take<pair>(at, size_t(kp / 2) * dim);
    bf16* qr = buffer.take<bf16>(at, size_t(BLOCK) * dim);
    float* score = buffer.take<float>(at, size_t(BLOCK) * kp);
    bf16* prob = buffer.take<bf16>(at, size_t(BLOCK) * kp);
    float* mix = buffer.take<float>(at, size_t(BLOCK) * dim);

    gather(k.data, k.stride, keys, kp, dim, s.cosine, s.sine, s.position + key_at, rows);
    pairs_across(rows, kp, dim, kt);
    gather(v.data, v.stride, keys, kp, dim, nullptr, nullptr, nullptr, rows);
    pairs_down(rows, kp, dim, vp);

    for (int q0 = 0; q0 < queries; q0 += BLOCK) {
        int m = std::min(BLOCK, queries - q0);
        gather(q.data + q0 * q.stride, q.stride, m, m, dim, s.cosine, s.sine, q_position + q0, qr);
        // The keys that any query of the block may see, widened to whole vectors.
        int lo = s.rule.first(q_position[q0]) / 32 * 32, hi = up(s.rule.last(q_position[q0 + m - 1], keys), 32), n = hi - lo;
        product(m, n, dim / 2, reinterpret_cast<pair*>(qr), dim / 2, 1, kt + lo, kp, score, kp, false);
        float inverse[BLOCK];
        for (int r = 0; r < m; ++r) {
            int from = s.rule.first(q_position[q0 + r]) - lo, to = s.rule.last(q_position[q0 + r], keys) - lo;
            float* line = score + int64_t(r) * kp;
            for (int c = 0; c < from; ++c) line[c] = -INFINITY;
            for (int c = to; c < n; ++c) line[c] = -INFINITY;
            vf best = splat(-INFINITY);
            for (int c = 0; c < n; c += W) best = larger(best, load(line + c));
            float top = largest(best) * s.scale;
            vf total{};
            for (int c = 0; c < n; c += W) {
                vf x = load(line + c);
                vf p = x < -1e30f ? vf{} : exponential(x * s.scale - top);
                total += p;
                store(prob + int64_t(r) * kp + c, p);
            }
            float all = sum(total);
            inverse[r] = 1.0f / all;
            if (lse) lse[(q0 + r) * lse_stride] = top + std::log(all);
        }
        product(m, dim, n / 2, reinterpret_cast<pair*>(prob), kp / 2, 1, vp + int64_t(lo / 2) * dim, dim, mix, dim, false);
        for (int r = 0; r < m; ++r)
            for (int i = 0; i < dim; i += W) store(out + (q0 + r) * out_stride + i, load(mix + r * dim + i) * inverse[r]);
    }
}

void attention_backward_task(const Shape& s, Heads q, Heads k, Heads v, const int32_t* q_position, int queries, int keys,
                             int key_at, const bf16* out, const bf16* d_out, int64_t out_stride, const float* lse,
                             int64_t lse_stride, bf16* dq, bf16* dk, bf16* dv, int64_t dq_stride, int64_t dkv_stride,
                             Buffer& buffer) {
    int dim = s.dim, qp = up(queries, 32), kp = up(keys, 32);
    size_t at = 0, need = size_t(qp) * dim * 24 + size_t(kp) * dim * 8 + size_t(BLOCK) * (size_t(qp) * 16 + dim * 24) + size_t(qp) * 16 + 8192;
    if (buffer.bytes.size() < need) buffer.bytes.resize(need);
    bf16* qr = buffer.take<bf16>(at, size_t(qp) * dim);
    bf16* gr = buffer.take<bf16>(at, size_t(qp) * dim);
    pair* qt = buffer.take<pair>(at, size_t(dim / 2) * qp);
    pair* gt = buffer.take<pair>(at, size_t(dim / 2) * qp);
    pair* qd = buffer.take<pair>(at, size_t(qp / 2) * dim);
    pair* gd = buffer.take<pair>(at, size_t(qp / 2) * dim);
    float* dq_sum = buffer.take<float>(at, size_t(qp) * dim);
    bf16* kr = buffer.take<bf16>(at, size_t(kp) * dim);
    pair* kd = buffer.take<pair>(at, size_t(kp / 2) * dim);
    bf16* vr = buffer.take<bf16>(at, size_t(BLOCK) * dim);
    float* score = buffer.take<float>(at, size_t(BLOCK) * qp);
    float* d_prob = buffer.take<float>(at, size_t(BLOCK) * qp);
    bf16* prob = buffer.take<bf16>(at, size_t(BLOCK) * qp);
    bf16* d_score = buffer.take<bf16>(at, size_t(BLOCK) * qp);
    pair* d_score_pairs = buffer.take<pair>(at, size_t(BLOCK / 2) * qp);
    float* d_row = buffer.take<float>(at, size_t(BLOCK) * dim);
    float* delta = buffer.take<float>(at, qp);
    float* norm = buffer.take<float>(at, qp);

    gather(q.data, q.stride, queries, qp, dim, s.cosine, s.sine, q_position, qr);
    gather(d_out, out_stride, queries, qp, dim, nullptr, nullptr, nullptr, gr);
    gather(k.data, k.stride, keys, kp, dim, s.cosine, s.sine, s.position + key_at, kr);
    pairs_across(qr, qp, dim, qt);
    pairs_across(gr, qp, dim, gt);
    pairs_down(qr, qp, dim, qd);
    pairs_down(gr, qp, dim, gd);
    pairs_down(kr, kp, dim, kd);
    std::memset(dq_sum, 0, size_t(qp) * dim * sizeof(float));
    for (int r = 0; r < qp; ++r) {
        vf d{};
        if (r < queries)
            for (int i = 0; i < dim; i += W) d += load(out + r * out_stride + i) * load(gr + r * dim + i);
        delta[r] = sum(d);
        norm[r] = r < queries ? lse[r * lse_stride] : INFINITY;  // a padded query has probability zero everywhere
    }
    bool limited = s.rule.window >= 0 || s.rule.causal;
    for (int k0 = 0; k0 < keys; k0 += BLOCK) {
        int m = std::min(BLOCK, keys - k0), even = up(m, 2);
        // The queries that may see any key of the block, widened to whole vectors.
        int lo = 0, hi = qp;
        if (limited) {
            int from = 0, to = queries;
            while (from < queries && s.rule.last(q_position[from], keys) <= k0) ++from;
            while (to > from && s.rule.first(q_position[to - 1]) >= k0 + m) --to;
            lo = from / 32 * 32, hi = up(to, 32);
        }
        int n = hi - lo;
        float* zero = d_row;
        if (n <= 0) {
            std::memset(zero, 0, size_t(m) * dim * sizeof(float));
            scatter(zero, m, dim, nullptr, nullptr, nullptr, dk + k0 * dkv_stride, dkv_stride);
            scatter(zero, m, dim, nullptr, nullptr, nullptr, dv + k0 * dkv_stride, dkv_stride);
            continue;
        }
        gather(v.data + k0 * v.stride, v.stride, m, m, dim, nullptr, nullptr, nullptr, vr);
        product(m, n, dim / 2, reinterpret_cast<pair*>(kr + int64_t(k0) * dim), dim / 2, 1, qt + lo, qp, score, qp, false);
        product(m, n, dim / 2, reinterpret_cast<pair*>(vr), dim / 2, 1, gt + lo, qp, d_prob, qp, false);
        for (int r = 0; r < even; ++r) {
            bf16 *p_line = prob + int64_t(r) * qp, *d_line = d_score + int64_t(r) * qp;
            if (r == m) {
                std::memset(d_line, 0, n * sizeof(bf16));
                continue;
            }
            for (int c = 0; c < n; c += W) {
                vf p = exponential(load(score + int64_t(r) * qp + c) * s.scale - load(norm + lo + c));
                if (lo + c + W > queries || limited)
                    for (int i = 0; i < W; ++i) {
                        int query = lo + c + i, key = k0 + r;
                        bool seen = query < queries && key >= s.rule.first(q_position[query]) && key < s.rule.last(q_position[query], keys);
                        if (!seen) p[i] = 0;
                    }
                store(p_line + c, p);
                store(d_line + c, p * (load(d_prob + int64_t(r) * qp + c) - load(delta + lo + c)) * s.scale);
            }
        }
        for (int r = 0; r < even; r += 2)
            weave(d_score + int64_t(r) * qp, d_score + int64_t(r + 1) * qp, d_score_pairs + int64_t(r / 2) * qp, n);
        product(m, dim, n / 2, reinterpret_cast<pair*>(prob), qp / 2, 1, gd + int64_t(lo / 2) * dim, dim, d_row, dim, false);
        scatter(d_row, m, dim, nullptr, nullptr, nullptr, dv + k0 * dkv_stride, dkv_stride);
        product(m, dim, n / 2, reinterpret_cast<pair*>(d_score), qp / 2, 1, qd + int64_t(lo / 2) * dim, dim, d_row, dim, false);
        scatter(d_row, m, dim, s.cosine, s.sine, s.position + key_at + k0, dk + k0 * dkv_stride, dkv_stride);
        product(n, dim, even / 2, d_score_pairs, 1, qp, kd + int64_t(k0 / 2) * dim, dim, dq_sum + int64_t(lo) * dim, dim, true);
    }
    scatter(dq_sum, queries, dim, s.cosine, s.sine, q_position, dq, dq_stride);
}
#endif

}  // namespace

// ------------------------------------------------------------------------------------------------------ what is called

#define DISPATCH(call_float, call_bf16) \
    if (type == 0) {                    \
        typedef float T;                \
        call_float;                     \
    } else {                            \
        typedef bf16 T;                 \
        call_bf16;                      \
    }
#define BOTH(call) DISPATCH(call, call)

extern "C" {

int bk_has_attention() {
#ifdef HAVE_BF16_DOT
    return 1;
#else
    return 0;
#endif
}

void bk_add_norm(int type, const void* residual, const void* x, const void* weight, const void* bias, void* total, void* out,
                 float* mean, float* scale, int64_t rows, int cols, float eps) {
    BOTH(add_norm((const T*)residual, (const T*)x, (const T*)weight, (const T*)bias, (T*)total, (T*)out, mean, scale, rows, cols, eps))
}
void bk_add_norm_backward(int type, const void* d_out, const void* d_total, const void* total, const void* weight,
                          const float* mean, const float* scale, void* d_in, float* d_weight, float* d_bias, int64_t rows,
                          int cols) {
    BOTH(add_norm_backward((const T*)d_out, (const T*)d_total, (const T*)total, (const T*)weight, mean, scale, (T*)d_in, d_weight, d_bias, rows, cols))
}
void bk_gelu(int type, const void* x, void* y, int64_t n) { BOTH(gelu_all((const T*)x, (T*)y, n)) }
void bk_gelu_backward(int type, const void* dy, const void* x, void* dx, int64_t n) {
    BOTH(gelu_all_backward((const T*)dy, (const T*)x, (T*)dx, n))
}
void bk_geglu(int type, const void* x, void* y, int64_t rows, int cols) { BOTH(geglu_all((const T*)x, (T*)y, rows, cols)) }
void bk_geglu_backward(int type, const void* dy, const void* x, void* dx, int64_t rows, int cols) {
    BOTH(geglu_all_backward((const T*)dy, (const T*)x, (T*)dx, rows, cols))
}
void bk_column_sum(int type, const void* x, float* out, int64_t rows, int cols) { BOTH(column_sum((const T*)x, out, rows, cols)) }
void bk_cross_entropy(int type, void* logits, const void* bias, const int64_t* target, float* loss, uint8_t* correct,
                      int64_t rows, int cols, float z, float scale, int want_gradient) {
    BOTH(cross_entropy((T*)logits, (const T*)bias, target, loss, correct, rows, cols, z, scale, want_gradient))
}
void bk_scatter_add(int type, const int64_t* ids, const void* rows, void* table, int64_t n, int cols) {
    BOTH(scatter_add(ids, (const T*)rows, (T*)table, n, cols))
}
void bk_adamw(int type, float* weight, float* m, float* v, const void* gradient, void* copy, int64_t n, float lr, float beta1,
              float beta2, float eps, float decay, float correct1, float correct2, float clip) {
    BOTH(adamw(weight, m, v, (const T*)gradient, (T*)copy, n, lr, beta1, beta2, eps, decay, correct1, correct2, clip))
}
void bk_muon_momentum(int type, float* first, const void* gradient, void* ahead, int64_t n, float momentum, float clip) {
    BOTH(muon_momentum(first, (const T*)gradient, (T*)ahead, n, momentum, clip))
}
void bk_muon_apply(int type, float* weight, const void* update, void* copy, int64_t n, float lr, float keep) {
    BOTH(muon_apply(weight, (const T*)update, (T*)copy, n, lr, keep))
}
double bk_square_sum(int type, const void* x, int64_t n) {
    if (type == 0) return square_sum((const float*)x, n);
    return square_sum((const bf16*)x, n);
}

#ifdef HAVE_BF16_DOT
// c [m, n] = a b (+ bias) (+ c), see gemm.hpp. `then` says what is done with each strip of c, with `other` [m, n]:
// nothing (0), other = gelu(c) (1), c *= gelu'(other) (2), each as the kernel of its own would.
void bk_product(int64_t m, int64_t n, int64_t k, const void* a, int64_t a_row, int a_down, const void* b, int64_t b_row,
                int b_down, void* c, const void* bias, int add, float* row_sums, int then, void* other) {
    gemm::Matrix left{(const gemm::half*)a, a_row, a_down != 0}, right{(const gemm::half*)b, b_row, b_down != 0};
    gemm::Out out{(gemm::half*)c, n, (const gemm::half*)bias, add != 0, row_sums};
    gemm::product(m, n, k, left, right, out, [=](int64_t row, int64_t rows, int64_t col, int64_t cols) {
        for (int64_t r = row; then && r < row + rows; ++r) {
            bf16 *x = (bf16*)c + r * n + col, *y = (bf16*)other + r * n + col;
            for (int64_t i = 0; i < cols; i += W) {
                int left = int(std::min<int64_t>(cols - i, W));
                vf value;
                if (then == 1)
                    store(y + i, gelu(load(x + i, left, 0)), left);
                else
                    store(x + i, load(x + i, left, 0) * gelu_slope(load(y + i, left, 0), value), left);
            }
        }
    });
}
// key_starts, query_starts [sequences + 1]: which keys and which queries a sequence owns. position [tokens] and
// query_position [queries]: places within the sequence. Strides count elements between tokens. lse [heads, queries].
void bk_attention(const void* q, const void* k, const void* v, int64_t q_stride, int64_t k_stride, int64_t v_stride,
                  const int32_t* key_starts, const int32_t* query_starts, int sequences, const int32_t* position,
                  const int32_t* query_position, int heads, int dim, float scale, int window, int causal,
                  const float* cosine, const float* sine, void* out, float* lse, int64_t n_queries) {
    Shape shape{heads, dim, scale, {window, causal}, cosine, sine, position};
#pragma omp parallel
    {
        Buffer buffer;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < sequences * heads; ++task) {
            int s = task / heads, h = task % heads, k0 = key_starts[s], q0 = query_starts[s];
            int keys = key_starts[s + 1] - k0, queries = query_starts[s + 1] - q0;
            if (queries == 0) continue;
            attention_task(shape, {(const bf16*)q + q0 * q_stride + h * dim, q_stride},
                           {(const bf16*)k + k0 * k_stride + h * dim, k_stride},
                           {(const bf16*)v + k0 * v_stride + h * dim, v_stride}, query_position + q0, queries, keys, k0,
                           (bf16*)out + (int64_t(q0) * heads + h) * dim, int64_t(heads) * dim,
                           lse ? lse + h * n_queries + q0 : nullptr, 1, buffer);
        }
    }
}
void bk_attention_backward(const void* q, const void* k, const void* v, int64_t q_stride, int64_t k_stride, int64_t v_stride,
                           const int32_t* key_starts, const int32_t* query_starts, int sequences, const int32_t* position,
                           const int32_t* query_position, int heads, int dim, float scale, int window, int causal,
                           const float* cosine, const float* sine, const void* out, const void* d_out, const float* lse,
                           int64_t n_queries, void* dq, void* dk, void* dv, int64_t dq_stride, int64_t dkv_stride) {
    Shape shape{heads, dim, scale, {window, causal}, cosine, sine, position};
#pragma omp parallel
    {
        Buffer buffer;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < sequences * heads; ++task) {
            int s = task / heads, h = task % heads, k0 = key_starts[s], q0 = query_starts[s];
            int keys = key_starts[s + 1] - k0, queries = query_starts[s + 1] - q0;
            int64_t o = (int64_t(q0) * heads + h) * dim;
            attention_backward_task(shape, {(const bf16*)q + q0 * q_stride + h * dim, q_stride},
                                    {(const bf16*)k + k0 * k_stride + h * dim, k_stride},
                                    {(const bf16*)v + k0 * v_stride + h * dim, v_stride}, query_position + q0, queries, keys,
                                    k0, (const bf16*)out + o, (const bf16*)d_out + o, int64_t(heads) * dim,
                                    lse + h * n_queries + q0, 1, (bf16*)dq + q0 * dq_stride + h * dim,
                                    (bf16*)dk + k0 * dkv_stride + h * dim, (bf16*)dv + k0 * dkv_stride + h * dim, dq_stride,
                                    dkv_stride, buffer);
        }
    }
}
#endif
}

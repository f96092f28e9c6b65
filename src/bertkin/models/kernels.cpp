// Fused CPU kernels: what lies between the matrix products of a Transformer's training step.
//
// Each kernel reads and writes every tensor once, computes in float32 and stores in the tensor's own type (float32 or
// bfloat16, picked by the first argument: 0 or 1). Any processor can compile it; matrix products (gemm.hpp, thin.hpp) and
// bfloat16's attention (attention.hpp) need AVX-512 with bf16 dot products and are left out elsewhere.
//
// Nothing here depends on the order in which threads finish, except where a comment says how it is made not to.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <omp.h>

#include "attention.hpp"
#include "updates.hpp"
#include "vectors.hpp"
#ifdef HAVE_BF16_DOT
#include "bytes.hpp"
#include "gemm.hpp"
#include "gemm_tiles.hpp"
#include "step.hpp"
#include "thin.hpp"
#endif

namespace {

// ------------------------------------------------------------------------------------------- residual and norm

// With `rms`, the norm divides by the root mean square alone: it is the layer norm of numbers whose mean is taken for 0.
template <class T>
void add_norm(const T* residual, const T* x, const T* weight, const T* bias, T* total, T* out, float* mean, float* scale,
              int64_t rows, int cols, float eps, bool rms) {
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
            float mu = rms ? 0 : sum(s) / cols;
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
                       const float* scale, T* d_in, float* d_weight, float* d_bias, int64_t rows, int cols, bool rms) {
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
            float ma = rms ? 0 : sum(a) / cols, mb = sum(b) / cols;
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

template <class T, class Bend>
void bend_all(Bend, const T* x, T* y, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) store(y + i, Bend::value(load(x + i, n - i, 0)), n - i);
}

template <class T, class Bend>
void bend_all_backward(Bend, const T* dy, const T* x, T* dx, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        vf value, slope = Bend::slope(load(x + i, n - i, 0), value);
        store(dx + i, load(dy + i, n - i, 0) * slope, n - i);
    }
}

// x [rows, 2 cols]: the first half bent, times the second.
template <class T, class Bend>
void gate_all(Bend, const T* x, T* y, int64_t rows, int cols) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < cols; c += W) {
            const T* p = x + r * 2 * cols + c;
            store(y + r * cols + c, Bend::value(load(p, cols - c, 0)) * load(p + cols, cols - c, 0), cols - c);
        }
}

template <class T, class Bend>
void gate_all_backward(Bend, const T* dy, const T* x, T* dx, int64_t rows, int cols) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < cols; c += W) {
            const T* p = x + r * 2 * cols + c;
            T* d = dx + r * 2 * cols + c;
            vf g = load(dy + r * cols + c, cols - c, 0), gate = load(p + cols, cols - c, 0);
            vf value, slope = Bend::slope(load(p, cols - c, 0), value);
            store(d, g * gate * slope, cols - c);
            store(d + cols, g * value, cols - c);
        }
}

// out = x * scale where a number's own random bits, a hash of its place and the seed, are not below `least`; else 0.
// The same call takes a gradient through the same choice.
template <class T>
void drop(const T* x, T* out, int64_t n, uint64_t seed, uint32_t least, float scale) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += W) {
        uint64_t begin = uint64_t(i) + seed;
        vu h = scrambled(ladder(uint32_t(begin), 1), uint32_t(seed >> 32) ^ uint32_t(begin >> 32) * 0x9e3779b1u);
        int left = int(std::min<int64_t>(n - i, W));
        store(out + i, h < least ? splat(0) : load(x + i, left, 0) * scale, left);
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

// table[ids[t]] += rows[t], and marks[ids[t]] = 1 if given: thread n owns the ids with id % threads == n, so each row is summed
// in token order.
template <class T>
void scatter_add(const int64_t* ids, const T* rows, T* table, uint8_t* marks, int64_t n, int cols) {
#pragma omp parallel
    {
        int me = omp_get_thread_num(), threads = omp_get_num_threads();
        for (int64_t t = 0; t < n; ++t) {
            if (ids[t] % threads != me) continue;
            if (marks) marks[ids[t]] = 1;
            T* to = table + ids[t] * cols;
            for (int c = 0; c < cols; c += W)
                store(to + c, load(to + c, cols - c, 0) + load(rows + t * cols + c, cols - c, 0), cols - c);
        }
    }
}

}  // namespace

// ------------------------------------------------------------------------------------------------------ what is called

#ifdef HAVE_BF16_DOT
// By matrix tiles where there are some, by dot products elsewhere.
template <class After>
void multiply(int64_t m, int64_t n, int64_t k, gemm::Matrix a, gemm::Matrix b, gemm::Out out, After after) {
#ifdef HAVE_TILES
    if (tiles::usable()) return tiles::product(m, n, k, a, b, out, after);
#endif
    gemm::product(m, n, k, a, b, out, after);
}
#endif

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

int bk_has_dots() {
#ifdef HAVE_BF16_DOT
    return 1;
#else
    return 0;
#endif
}

void bk_add_norm(int type, const void* residual, const void* x, const void* weight, const void* bias, void* total, void* out,
                 float* mean, float* scale, int64_t rows, int cols, float eps, int rms) {
    BOTH(add_norm((const T*)residual, (const T*)x, (const T*)weight, (const T*)bias, (T*)total, (T*)out, mean, scale, rows, cols, eps, rms))
}
void bk_add_norm_backward(int type, const void* d_out, const void* d_total, const void* total, const void* weight,
                          const float* mean, const float* scale, void* d_in, float* d_weight, float* d_bias, int64_t rows,
                          int cols, int rms) {
    BOTH(add_norm_backward((const T*)d_out, (const T*)d_total, (const T*)total, (const T*)weight, mean, scale, (T*)d_in, d_weight, d_bias, rows, cols, rms))
}
void bk_bend(int type, int kind, const void* x, void* y, int64_t n) {
    BOTH(with_bend<T>(kind, [=](auto bend) { bend_all(bend, (const T*)x, (T*)y, n); }))
}
void bk_bend_backward(int type, int kind, const void* dy, const void* x, void* dx, int64_t n) {
    BOTH(with_bend<T>(kind, [=](auto bend) { bend_all_backward(bend, (const T*)dy, (const T*)x, (T*)dx, n); }))
}
void bk_gate(int type, int kind, const void* x, void* y, int64_t rows, int cols) {
    BOTH(with_bend<T>(kind, [=](auto bend) { gate_all(bend, (const T*)x, (T*)y, rows, cols); }))
}
void bk_gate_backward(int type, int kind, const void* dy, const void* x, void* dx, int64_t rows, int cols) {
    BOTH(with_bend<T>(kind, [=](auto bend) { gate_all_backward(bend, (const T*)dy, (const T*)x, (T*)dx, rows, cols); }))
}
void bk_drop(int type, const void* x, void* out, int64_t n, uint64_t seed, uint32_t least, float scale) {
    BOTH(drop((const T*)x, (T*)out, n, seed, least, scale))
}
void bk_column_sum(int type, const void* x, float* out, int64_t rows, int cols) { BOTH(column_sum((const T*)x, out, rows, cols)) }
void bk_cross_entropy(int type, void* logits, const void* bias, const int64_t* target, float* loss, uint8_t* correct,
                      int64_t rows, int cols, float z, float scale, int want_gradient) {
    BOTH(cross_entropy((T*)logits, (const T*)bias, target, loss, correct, rows, cols, z, scale, want_gradient))
}
void bk_scatter_add(int type, const int64_t* ids, const void* rows, void* table, uint8_t* marks, int64_t n, int cols) {
    BOTH(scatter_add(ids, (const T*)rows, (T*)table, marks, n, cols))
}
// The marked rows of a table [rows, cols] of numbers of so many bytes become zero, and unmarked.
void bk_clear(void* table, uint8_t* marks, int64_t rows, int64_t cols, int bytes) {
    for (int64_t r = 0; r < rows; ++r)
        if (marks[r]) std::memset((char*)table + r * cols * bytes, 0, cols * bytes), marks[r] = 0;
}
// AdamW (Loshchilov and Hutter 2019) on float32 masters, of all tensors in one go.
void bk_adamw(const Update* all, int64_t count, float beta1, float beta2, float eps, float clip) {
    std::vector<Part> parts;
    for (int64_t i = 0; i < count; ++i)
        all[i].moved ? cut(parts, i, all[i].rows, 128) : cut(parts, i, all[i].rows * all[i].cols, 1 << 14);
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t k = 0; k < parts.size(); ++k) {
        const Update& u = all[parts[k].of];
        int type = u.type;
        Adam adam{u.lr, beta1, beta2, eps, u.decay, u.correct1, u.correct2, clip};
        BOTH(adamw<T>(u, adam, parts[k].from, parts[k].to))
    }
}
void bk_muon_momentum(int type, float* first, const void* gradient, void* ahead, int64_t n, float momentum, float clip) {
    BOTH(muon_momentum(first, (const T*)gradient, (T*)ahead, n, momentum, clip))
}
void bk_muon_apply(int type, float* weight, const void* update, void* copy, int64_t n, float lr, float keep) {
    BOTH(muon_apply(weight, (const T*)update, (T*)copy, n, lr, keep))
}
// Squares are summed in blocks of fixed size and the blocks in order, whatever the number of threads.
double bk_square_sum(const Numbers* all, int64_t count) {
    std::vector<Part> parts;
    for (int64_t i = 0; i < count; ++i) all[i].marks ? cut(parts, i, all[i].rows, 1 << 10) : cut(parts, i, all[i].rows * all[i].cols, 1 << 14);
    std::vector<double> sums(parts.size());
#pragma omp parallel for schedule(static)
    for (size_t k = 0; k < parts.size(); ++k) {
        const Part& p = parts[k];
        int type = all[p.of].type;
        BOTH(sums[k] = square_sum<T>(all[p.of], p.from, p.to))
    }
    double total = 0;
    for (double x : sums) total += x;
    return total;
}

// See `Looks` in attention.hpp. out, d_out [queries, heads * dim], lse [heads, queries].
void bk_attention(int type, const Looks* looks, void* out, float* lse) {
    if (type == 0) return attention(*looks, (float*)out, lse);
#ifdef HAVE_BF16_DOT
    attention(*looks, (bf16*)out, lse);
#endif
}
void bk_attention_backward(int type, const Looks* looks, const void* out, const void* d_out, const float* lse, void* dq,
                           void* dk, void* dv, int64_t dq_stride, int64_t dkv_stride, float* d_distances) {
    auto backward = [=](auto of) {
        typedef decltype(of) T;
        Gradients<T> d{(T*)dq, (T*)dk, (T*)dv, dq_stride, dkv_stride, d_distances};
        attention_backward(*looks, (const T*)out, (const T*)d_out, lse, d);
    };
    if (type == 0) return backward(float{});
#ifdef HAVE_BF16_DOT
    backward(bf16{});
#endif
}

#ifdef HAVE_BF16_DOT
int bk_tiles() { return tiles::usable(); }
void bk_use_tiles(int wanted) { tiles::use(wanted != 0); }

// c [m, n] = a b (+ bias) (+ c), see gemm.hpp. `then` says what is done with each strip of c, with `other` [m, n]:
// nothing (0), other = bend(c) (1), c *= bend'(other) (2), each as the kernel of its own would.
void bk_product(int64_t m, int64_t n, int64_t k, const void* a, int64_t a_row, int a_down, const void* b, int64_t b_row,
                int b_down, void* c, const void* bias, int add, float* row_sums, int then, int kind, void* other) {
    gemm::Matrix left{(const gemm::half*)a, a_row, a_down != 0}, right{(const gemm::half*)b, b_row, b_down != 0};
    gemm::Out out{(gemm::half*)c, n, (const gemm::half*)bias, add != 0, row_sums};
    multiply(m, n, k, left, right, out, [=](int64_t row, int64_t rows, int64_t col, int64_t cols) {
        if (!then) return;
        with_bend<bf16>(kind, [=](auto bend) {
            typedef decltype(bend) Bend;
            for (int64_t r = row; r < row + rows; ++r) {
                bf16 *x = (bf16*)c + r * n + col, *y = (bf16*)other + r * n + col;
                for (int64_t i = 0; i < cols; i += W) {
                    int left = int(std::min<int64_t>(cols - i, W));
                    vf value;
                    if (then == 1)
                        store(y + i, Bend::value(load(x + i, left, 0)), left);
                    else
                        store(x + i, load(x + i, left, 0) * Bend::slope(load(y + i, left, 0), value), left);
                }
            }
        });
    });
}

// Logits c [rows, vocab] = hidden [rows, k] table [vocab, k], each made e^(logit - shift of its row) while in cache, so that
// no pass over c is left to do: `own` [rows] are the targets' logits, `sums` and `tops` [rows, ceil(vocab / 256)] (0, -inf at first) what
// each block of columns adds to the sum of its row, and its largest logit.
void bk_exponentials(int64_t rows, int64_t vocab, int64_t k, const void* hidden, const void* table, const int64_t* target,
                     const float* shift, void* c, float* own, float* sums, float* tops) {
    constexpr int64_t SLOT = 256;
    constexpr float LOG2_E = 1.44269504f;
    int64_t slots = (vocab + SLOT - 1) / SLOT;
    gemm::Matrix left{(const gemm::half*)hidden, k, false}, right{(const gemm::half*)table, k, false};
    gemm::Out out{(gemm::half*)c, vocab, nullptr, false, nullptr, SLOT};
    multiply(rows, vocab, k, left, right, out, [=](int64_t row, int64_t n, int64_t col, int64_t cols) {
        for (int64_t r = row; r < row + n; ++r) {
            bf16* x = (bf16*)c + r * vocab + col;
            int64_t at = target[r] - col;
            if (at >= 0 && at < cols) {
                uint32_t bits = uint32_t(x[at].bits) << 16;
                std::memcpy(own + r, &bits, 4);
            }
            vf base = splat(shift[r] * LOG2_E), best = splat(-INFINITY), all{};
            for (int64_t i = 0; i < cols; i += W) {
                int left = int(std::min<int64_t>(cols - i, W));
                vf logit = load(x + i, left, -INFINITY);
                best = larger(best, logit);
                vf p = (vf)power_of_two((__m512)(logit * LOG2_E - base));
                all += p;
                store(x + i, p, left);
            }
            sums[r * slots + col / SLOT] = sum(all);
            tops[r * slots + col / SLOT] = largest(best);
        }
    });
}
// y [rows, out] = x [rows, in] w [out, in] (+ bias), for few rows and at least 4 of out.
void bk_thin(int64_t rows, int64_t out, int64_t in, const void* x, const void* w, const void* bias, void* y) {
    thin({rows, out, in, (const bf16*)x, (const bf16*)w, (const bf16*)bias, (bf16*)y});
}
// y [m, down.out] = bend(x [m, up.in] up) down, see bytes.hpp.
void bk_feed_forward_bytes(const void* x, int64_t m, const void* up, const void* down, int kind, void* y) {
    const step::Packed &first = *(const step::Packed*)up, &second = *(const step::Packed*)down;
    with_bend<bf16>(kind, [&](auto bend) { bytes::feed_forward((const bf16*)x, m, first, second, (bf16*)y, bend); });
}
void bk_look(const Kept* kept) {
    if (kept->type == 0)
        look<float>(*kept);
    else
        look<bf16>(*kept);
}
#endif
}

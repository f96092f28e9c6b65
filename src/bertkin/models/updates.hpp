// What an optimiser does to weights and gradients: AdamW, the two halves of Muon that are no products, the gradients' norm.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

#include "vectors.hpp"

// Outside of the namespace below, as functions named in C take them.

// One tensor of an update. Most rows of a table of embeddings have no gradient, and many never had one: `moved` [rows], if given,
// tells those that have moments by now, and the others are passed over. `marks` [rows], if given, tells those whose gradient is to
// be read: it is zero in the others. Mirrored by `optim.Update`.
struct Update {
    float *weight, *first, *second;
    const void* gradient;
    void* copy;  // receives the new weights in the gradient's type; or null
    uint8_t* moved;
    const uint8_t* marks;
    int64_t rows, cols;
    float lr, decay, correct1, correct2;
    int32_t type;
};

// The numbers of a tensor, with marks as above. Mirrored by `optim.Numbers`.
struct Numbers {
    const void* at;
    const uint8_t* marks;
    int64_t rows, cols;
    int32_t type;
};

namespace {

// Some numbers of one row of AdamW, see below.
struct Adam {
    float lr, beta1, beta2, eps, decay, correct1, correct2, clip;

    template <class T>
    void step(float* weight, float* m, float* v, const T* gradient, T* copy, int64_t n) const {
        for (int64_t i = 0; i < n; i += W) {
            int left = int(std::min<int64_t>(n - i, W));
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

    // A row without gradient, now and before: what the above comes to, to the bit (a test asks the compiler).
    template <class T>
    void rest(float* weight, T* copy, int64_t n) const {
        for (int64_t i = 0; decay != 0 && i < n; i += W) {
            int left = int(std::min<int64_t>(n - i, W));
            vf w = load(weight + i, left, 0);
            w -= lr * decay * w;
            store(weight + i, w, left);
            if (copy) store(copy + i, w, left);
        }
    }
};

// Whether all bits are zero: the first byte is, and each is as the one before.
template <class T>
bool nothing(const T* x, int64_t n) {
    const char* bytes = reinterpret_cast<const char*>(x);
    return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, n * sizeof(T) - 1) == 0;
}

// Rows `from` to `to` of a table, or numbers of a tensor.
template <class T>
void adamw(const Update& u, const Adam& adam, int64_t from, int64_t to) {
    const T* g = (const T*)u.gradient;
    T* copy = (T*)u.copy;
    auto step = [&](int64_t at, int64_t n, const T* gradient) {
        adam.step(u.weight + at, u.first + at, u.second + at, gradient, copy ? copy + at : nullptr, n);
    };
    if (!u.moved) return step(from, to - from, g + from);
    std::vector<T> zeros(u.cols);
    for (int64_t r = from; r < to; ++r) {
        const T* row = u.marks && !u.marks[r] ? zeros.data() : g + r * u.cols;
        if (!u.moved[r]) {
            if (row == zeros.data() || nothing(row, u.cols)) {
                adam.rest(u.weight + r * u.cols, copy ? copy + r * u.cols : nullptr, u.cols);
                continue;
            }
            u.moved[r] = 1;
        }
        step(r * u.cols, u.cols, row);
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

template <class T>
double square_sum(const T* x, int64_t n) {
    vf s[4] = {};  // four chains of additions, so that they need not wait for each other
    for (int64_t i = 0; i < n; i += 4 * W)
        for (int k = 0; k < 4 && i + k * W < n; ++k) {
            vf a = load(x + i + k * W, int(std::min<int64_t>(n - i - k * W, W)), 0);
            s[k] += a * a;
        }
    return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// Of numbers `from` to `to`, or, where there are marks, of the marked ones among such rows.
template <class T>
double square_sum(const Numbers& all, int64_t from, int64_t to) {
    const T* x = (const T*)all.at;
    if (!all.marks) return square_sum(x + from, to - from);
    double total = 0;
    for (int64_t r = from; r < to; ++r)
        if (all.marks[r]) total += square_sum(x + r * all.cols, all.cols);
    return total;
}

// What threads share out: at most so many rows or numbers of one of several tensors.
struct Part {
    int64_t of, from, to;
};
inline void cut(std::vector<Part>& parts, int64_t of, int64_t n, int64_t most) {
    for (int64_t i = 0; i < n; i += most) parts.push_back({of, i, std::min(n, i + most)});
}

}  // namespace

// Steps of generation on processors with AVX-512 bf16 dot products: products of a few rows with a weight, and one new token
// of each sequence looking at the keys and values that are kept. Both do little but read memory, so each weight, key and
// value is read once, for all rows or heads that want it, and in the order in which it lies.
//
// A number does not depend on the number of threads, nor on which rows it is computed together with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

#include "vectors.hpp"

namespace {

constexpr int64_t WORTH = 1 << 16;  // numbers to read from which on threads are woken

// The sum of each of 16 vectors.
inline __m512 sums_of(const __m512* a) {
    __m512 t[8], u[4];
    for (int i = 0; i < 8; ++i)
        t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        __m512d x = (__m512d)t[2 * i], y = (__m512d)t[2 * i + 1];
        u[i] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(x, y), (__m512)_mm512_unpackhi_pd(x, y));
    }
    auto fold = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    return fold(fold(u[0], u[1]), fold(u[2], u[3]));
}

// ------------------------------------------------------------------------------------------------- few rows, one weight

struct Thin {
    int64_t rows, out, in;
    const bf16* x;     // [rows, in]
    const bf16* w;     // [out, in]
    const bf16* bias;  // [out] or null
    bf16* y;           // [rows, out]
};

constexpr int SIDE = 4;  // rows of x and of w whose dot products are in registers at a time

inline __mmask32 lanes_of(int64_t n) { return n >= 32 ? 0xffffffffu : (1u << n) - 1; }

inline __m512bh some(const bf16* p, int64_t n) {
    return (__m512bh)(n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(lanes_of(n), p));
}

// Dot products of R rows of x with SIDE of w, which is read from memory: in the order in which it lies, what comes next
// asked for early.
template <int R>
inline __m512 thin_tile(const bf16* x, const bf16* w, int64_t in) {
    constexpr int64_t AHEAD = 2048;
    __m512 sum[16];
    for (auto& s : sum) s = _mm512_setzero_ps();
    for (int o = 0; o < SIDE; ++o, w += in) {
        // One chain of additions a row, as below, so that a row's numbers do not depend on how many there are.
        __m512 part[R];
        for (auto& s : part) s = _mm512_setzero_ps();
        int64_t k = 0;
        for (; k + 32 <= in; k += 32) {
            _mm_prefetch(reinterpret_cast<const char*>(w + k + AHEAD), _MM_HINT_T0);
            __m512bh right = (__m512bh)_mm512_loadu_si512(w + k);
            for (int r = 0; r < R; ++r)
                part[r] = _mm512_dpbf16_ps(part[r], (__m512bh)_mm512_loadu_si512(x + r * in + k), right);
        }
        if (k < in)
            for (int r = 0; r < R; ++r)
                part[r] = _mm512_dpbf16_ps(part[r], some(x + r * in + k, in - k), some(w + k, in - k));
        for (int r = 0; r < R; ++r) sum[r * SIDE + o] = part[r];
    }
    return sums_of(sum);
}

// The same for SIDE more rows of x, with w in cache.
inline __m512 thin_tile_again(const bf16* x, const bf16* w, int64_t in, int rows) {
    __m512 sum[16];
    for (auto& s : sum) s = _mm512_setzero_ps();
    // Where there are fewer, the last one stands in for those that are missing.
    const bf16* row[SIDE];
    for (int r = 0; r < SIDE; ++r) row[r] = x + std::min(r, rows - 1) * in;
    auto step = [&](int64_t k, auto read) {
        __m512bh left[SIDE];
        for (int r = 0; r < SIDE; ++r) left[r] = read(row[r] + k);
        for (int o = 0; o < SIDE; ++o) {
            __m512bh right = read(w + o * in + k);
            for (int r = 0; r < SIDE; ++r) sum[r * SIDE + o] = _mm512_dpbf16_ps(sum[r * SIDE + o], left[r], right);
        }
    };
    int64_t k = 0;
    for (; k + 32 <= in; k += 32) step(k, [](const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); });
    if (k < in) step(k, [=](const bf16* p) { return some(p, in - k); });
    return sums_of(sum);
}

// Writes what a tile found for columns col + skip up to col + SIDE of some rows.
inline void thin_store(const Thin& t, int64_t row, int rows, int64_t col, int skip, __m512 sums) {
    if (t.bias) {
        float b[SIDE];
        for (int o = 0; o < SIDE; ++o) {
            uint32_t bits = uint32_t(t.bias[col + o].bits) << 16;
            std::memcpy(b + o, &bits, 4);
        }
        sums = _mm512_add_ps(sums, _mm512_broadcast_f32x4(_mm_loadu_ps(b)));
    }
    bf16 found[16];
    store(found, (vf)sums);
    for (int r = 0; r < rows; ++r)
        std::memcpy(t.y + (row + r) * t.out + col + skip, found + r * SIDE + skip, (SIDE - skip) * sizeof(bf16));
}

inline void thin(const Thin& t) {
    int64_t blocks = (t.out + SIDE - 1) / SIDE;
#pragma omp parallel for schedule(static) if (t.out * t.in > WORTH)
    for (int64_t b = 0; b < blocks; ++b) {
        int64_t col = std::min(b * SIDE, t.out - SIDE);  // the last block starts early enough to be whole
        int skip = int(b * SIDE - col);
        const bf16* w = t.w + col * t.in;
        for (int64_t r = 0; r < t.rows; r += SIDE) {
            const bf16* x = t.x + r * t.in;
            int rows = int(std::min<int64_t>(SIDE, t.rows - r));
            __m512 sums;
            if (r)
                sums = thin_tile_again(x, w, t.in, rows);
            else if (rows == 1)
                sums = thin_tile<1>(x, w, t.in);
            else if (rows == 2)
                sums = thin_tile<2>(x, w, t.in);
            else if (rows == 3)
                sums = thin_tile<3>(x, w, t.in);
            else
                sums = thin_tile<4>(x, w, t.in);
            thin_store(t, r, rows, col, skip, sums);
        }
    }
}

// --------------------------------------------------------------------------------------- one token, what has been kept

}  // namespace

// Who looks at what: q [n, heads, dim], kept keys and values [n, capacity, kv_heads, dim] with strides in elements.
// Mirrored by `looks.Kept`.
struct Kept {
    const void *q, *k, *v;
    void* out;  // [n, heads, dim]
    const int32_t* lengths;
    const float* distances;  // [heads, 2 longest - 1] or null
    int64_t q_row, row, step;  // from sequence to sequence; keys and values: from place to place
    int32_t n, heads, kv_heads, dim, window, longest, type, capacity;
    float scale;
};

namespace {

inline __m512 multiplied(const bf16* a, const bf16* b, int dim) {
    __m512 s = _mm512_setzero_ps();
    for (int i = 0; i < dim; i += 32)
        s = _mm512_dpbf16_ps(s, (__m512bh)_mm512_loadu_si512(a + i), (__m512bh)_mm512_loadu_si512(b + i));
    return s;
}
inline __m512 multiplied(const float* a, const float* b, int dim) {
    __m512 s = _mm512_setzero_ps();
    for (int i = 0; i < dim; i += 16) s = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s);
    return s;
}

template <class T>
void look(const Kept& s) {
    int group = s.heads / s.kv_heads, columns = 2 * s.longest - 1;
    constexpr int WIDE = 8;  // vectors of a head that are mixed at a time
#pragma omp parallel for schedule(dynamic, 1) if (int64_t(s.n) * s.kv_heads * s.capacity * s.dim > WORTH)
    for (int task = 0; task < s.n * s.kv_heads; ++task) {
        static thread_local std::vector<float> room;
        int i = task / s.kv_heads, kv = task % s.kv_heads, length = s.lengths[i];
        int first = s.window >= 0 ? std::max(0, length - 1 - s.window) : 0, n = length - first, wide = (n + 15) / 16 * 16;
        if (room.size() < size_t(group) * wide) room.resize(size_t(group) * wide + 1024);
        float* score = room.data();
        const T* k = (const T*)s.k + i * s.row + first * s.step + kv * s.dim;
        const T* v = (const T*)s.v + i * s.row + first * s.step + kv * s.dim;
        const T* q = (const T*)s.q + i * s.q_row + kv * group * s.dim;
        for (int c = 0; c < n; c += 16)
            for (int g = 0; g < group; ++g) {
                __m512 part[16];
                for (int j = 0; j < 16; ++j)
                    part[j] = c + j < n ? multiplied(q + g * s.dim, k + (c + j) * s.step, s.dim) : _mm512_setzero_ps();
                _mm512_storeu_ps(score + g * wide + c, _mm512_mul_ps(sums_of(part), _mm512_set1_ps(s.scale)));
            }
        for (int g = 0; g < group; ++g) {
            int head = kv * group + g;
            float* line = score + g * wide;
            if (s.distances) {
                const float* add = s.distances + int64_t(head) * columns + s.longest - 1 - (length - 1) + first;
                for (int c = 0; c < n; ++c) line[c] += add[c];
            }
            for (int c = n; c < wide; ++c) line[c] = -INFINITY;
            vf best = splat(-INFINITY), total{};
            for (int c = 0; c < wide; c += W) best = larger(best, load(line + c));
            float top = largest(best);
            for (int c = 0; c < wide; c += W) {
                vf x = load(line + c), p = x < -1e30f ? vf{} : exponential(x - top);
                store(line + c, p);
                total += p;
            }
            float all = sum(total), inverse = all > 0 ? 1.0f / all : 0;
            T* out = (T*)s.out + (int64_t(i) * s.heads + head) * s.dim;
            for (int d = 0; d < s.dim; d += WIDE * W) {
                int parts = std::min(WIDE, (s.dim - d) / W);
                vf mix[WIDE] = {};
                auto add = [&](auto count) {
                    for (int c = 0; c < n; ++c)
                        for (int j = 0; j < count(); ++j) mix[j] += line[c] * load(v + c * s.step + d + j * W);
                };
                if (parts == 4)
                    add([] { return 4; });
                else
                    add([=] { return parts; });
                for (int j = 0; j < parts; ++j) store(out + d + j * W, mix[j] * inverse);
            }
        }
    }
}

}  // namespace

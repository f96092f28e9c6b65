// One step of writing, whole: all layers of a stack for one token of each sequence, and the scores of the next token.
//
// With few rows a product is as fast as its weight can be read, so the weight lies in memory in the order it is read in:
// groups of 64 outputs, and in each the inputs in order, two (bfloat16) or four (int8) of each output side by side. What
// is left to lose is waiting: the step is one parallel region, in which threads share out each product and each
// sequence's heads, do the small things (sums, norms) each for itself, and meet five times a layer.
#pragma once

#include <omp.h>
#include <vector>

#include "tiles.hpp"
#include "vectors.hpp"

#ifdef HAVE_BF16_DOT
namespace {
namespace step {

constexpr int GROUP = 64, ROWS = 6;  // outputs of a group; rows that share a reading of it
constexpr int TALL = 16;             // the same, where tiles multiply; of more rows they read whole sixteens

inline int64_t padded(int64_t rows) { return (rows + TALL - 1) / TALL * TALL; }

// A weight [out, in] in that order, padded with zeros to whole groups. int8: w = scale * data, a row's own scale, and
// sums = 128 * the sum of the row's data.
struct Packed {
    const void* data;  // null where there is none
    const float* scale;  // null for bfloat16
    const int32_t* sums;
    const bf16* bias;  // [out] or null
    int64_t out, in;
};
struct Norm {
    const bf16 *weight, *bias;  // no weight: no norm; no bias: none
};
struct Layer {
    Norm attention_norm, cross_norm, feed_forward_norm;
    Packed qkv, out, cross_q, cross_out, up, down;
    bf16 *keys, *values;                    // [rows, capacity, kv_heads, dim]
    const bf16 *cross_keys, *cross_values;  // [rows, cross_capacity, kv_heads, dim]
    const float *cosine, *sine;             // [capacity, dim / 2], or null
    int64_t window;                         // negative: none
};
struct Step {
    const Layer* layer;
    int64_t layers, hidden, heads, kv_heads, dim, wide, bend, gated, pre, rms, vocab, capacity, cross_capacity, middle;
    float eps, scale, logit_scale;
    const bf16 *tokens, *positions, *segment;  // positions (of the first token) and segment may be null
    Norm embedding_norm, final_norm, head_norm;
    Packed dense, table;
    int64_t head_bend;
    const float* distances;  // [heads, 2 * middle + 1] or null
    const int32_t* cross_lengths;
    int32_t* lengths;  // of what is kept
};
// What is read: a token of each of n sequences, or, where there is an owner, n tokens of prompts.
struct Tokens {
    int64_t n;
    const int64_t* ids;
    const int64_t* owner;      // [n] the row of the cache
    const int32_t* position;   // [n]
    const int32_t* reach;      // [n] how many of its sequence's tokens each one sees
    int64_t asked;             // how many of them want an answer
    const int64_t* where;      // [asked]

    int64_t row(int64_t r) const { return owner ? owner[r] : r; }
};

// ------------------------------------------------------------------------------------------------------------ products

// What a thread reads of a product's left side: n rows of bfloat16, and, for an int8 weight, the same as bytes.
struct Rows {
    std::vector<uint8_t> bytes;
    std::vector<float> scale;
    const bf16* x;

    void set(const Packed& w, const bf16* from, int64_t n) {
        x = from;
        if (!w.scale) return;
        bytes.resize(padded(n) * w.in);
        scale.resize(n);
        for (int64_t r = 0; r < n; ++r) {
            const bf16* line = from + r * w.in;
            vf top{};
            for (int64_t i = 0; i < w.in; i += W) {
                vf v = load(line + i);
                top = larger(top, larger(v, -v));
            }
            float most = std::max(largest(top), 1e-20f);
            scale[r] = most / 127.0f;
            for (int64_t i = 0; i < w.in; i += W) {
                __m512i q = _mm512_cvtps_epi32((__m512)(load(line + i) * (127.0f / most)));
                _mm_storeu_si128((__m128i*)(bytes.data() + r * w.in + i),
                                 _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(128))));
            }
        }
    }
};

// Memory is slow to answer, so what will be read is asked for ahead. A group that is read once is asked for a page ahead
// (next = null); while one is read several times, for several tiles, `next` says which lines of the group after it are.
template <int LINES>
inline void ask(const char* p, const char*& next, const char* end) {
    if (LINES == 4 || !next) {
        for (int i = 0; i < 4; ++i) _mm_prefetch(p + 4096 + 64 * i, _MM_HINT_T0);
    } else if (next < end) {
        for (int i = 0; i < LINES; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T1);
        next += 64 * LINES;
    }
}

// Sums must stay in registers, so every loop over them is unrolled, and what becomes of them is left to later.

// What R rows of bytes add up to with 64 outputs of an int8 weight, which lie at p; `meanwhile(p)` is called with every word.
template <int R, class Meanwhile>
__attribute__((always_inline)) inline void dot_bytes(const int32_t* const (&x)[R], const char* p, int64_t words, __m512i (&acc)[R][4],
                                                     Meanwhile meanwhile) {
#pragma GCC unroll 32
    for (int j = 0; j < 4 * R; ++j) acc[j / 4][j % 4] = _mm512_setzero_si512();
    for (int64_t k = 0; k < words; ++k, p += 256) {
        __m512i b[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) b[i] = _mm512_loadu_si512(p + 64 * i);
        meanwhile(p);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            __m512i a = _mm512_set1_epi32(x[r][k]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], a, b[i]);
        }
    }
}

template <int R, int LINES>
inline void tile(const Packed& w, const Rows& rows, int64_t row, int64_t group, const char*& next, vf (*out)[4]) {
    bool bytes = w.scale != nullptr;
    int64_t words = bytes ? w.in / 4 : w.in / 2;
    const char *p = (const char*)w.data + group * words * 256, *end = p + words * 512;
    const int32_t* x[R];
    for (int r = 0; r < R; ++r)
        x[r] = bytes ? (const int32_t*)(rows.bytes.data() + (row + r) * w.in) : (const int32_t*)(rows.x + (row + r) * w.in);
    if (bytes) {
        __m512i acc[R][4];
        dot_bytes(x, p, words, acc, [&](const char* at) { ask<LINES>(at, next, end); });
#pragma GCC unroll 32
        for (int j = 0; j < 4 * R; ++j) {
            int64_t at = group * GROUP + j % 4 * W;
            vf y = (vf)_mm512_cvtepi32_ps(_mm512_sub_epi32(acc[j / 4][j % 4], _mm512_loadu_si512(w.sums + at)));
            out[j / 4][j % 4] = y * (load(w.scale + at) * rows.scale[row + j / 4]);
        }
        return;
    }
    __m512 acc[R][4];
#pragma GCC unroll 32
    for (int j = 0; j < 4 * R; ++j) acc[j / 4][j % 4] = _mm512_setzero_ps();
    for (int64_t k = 0; k < words; ++k, p += 256) {
        __m512bh b[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) b[i] = (__m512bh)_mm512_loadu_si512(p + 64 * i);
        ask<LINES>(p, next, end);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            __m512bh a = (__m512bh)_mm512_set1_epi32(x[r][k]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_dpbf16_ps(acc[r][i], b[i], a);
        }
    }
#pragma GCC unroll 32
    for (int j = 0; j < 4 * R; ++j) out[j / 4][j % 4] = (vf)acc[j / 4][j % 4];
}

// A group of a product: take(row, column, 16 sums without bias), for columns below w.out only as far as the caller looks.
template <int LINES, class Take>
inline void by_dots(const Packed& w, const Rows& rows, int64_t n, int64_t group, Take take) {
    const char* next = LINES == 4 ? nullptr : (const char*)w.data + (group + 1) * (w.scale ? w.in / 4 : w.in / 2) * 256;
    for (int64_t row = 0, parts = (n + ROWS - 1) / ROWS; parts > 0; --parts) {
        int64_t count = (n - row + parts - 1) / parts;
        vf sums[ROWS][4];
        switch (count) {
            case 1: tile<1, LINES>(w, rows, row, group, next, sums); break;
            case 2: tile<2, LINES>(w, rows, row, group, next, sums); break;
            case 3: tile<3, LINES>(w, rows, row, group, next, sums); break;
            case 4: tile<4, LINES>(w, rows, row, group, next, sums); break;
            case 5: tile<5, LINES>(w, rows, row, group, next, sums); break;
            default: tile<6, LINES>(w, rows, row, group, next, sums);
        }
        for (int i = 0; i < 4; ++i)
            for (int64_t r = 0; r < count; ++r) take(row + r, group * GROUP + i * W, sums[r][i]);
        row += count;
    }
}

#ifdef HAVE_TILES
// The same by tiles, which take a group as it lies. One row or sixteen, the sums are made in the same order, so texts written side
// by side are what each would be alone.
template <class Take>
inline void by_tiles(const Packed& w, const Rows& rows, int64_t n, int64_t group, Take take) {
    bool bytes = w.scale != nullptr;
    int64_t words = bytes ? w.in / 4 : w.in / 2, x_row = 4 * words;
    const char *data = (const char*)w.data + group * words * 256, *x = bytes ? (const char*)rows.bytes.data() : (const char*)rows.x;
    alignas(64) float sums[TALL * GROUP];
    for (int64_t row = 0; row < n; row += TALL) {
        const char *p = data, *left = x + row * x_row;
        tiles::stored();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < words; k += 16, p += 4096, left += 64) {
            if (!row)
                for (int i = 0; i < 64; ++i) _mm_prefetch(p + 4096 + 64 * i, _MM_HINT_T0);
            _tile_loadd(4, left, x_row);
            _tile_loadd(5, p, 256);
            _tile_loadd(6, p + 64, 256);
            _tile_loadd(7, p + 128, 256);
            if (bytes) {
                _tile_dpbusd(0, 4, 5);
                _tile_dpbusd(1, 4, 6);
                _tile_dpbusd(2, 4, 7);
                _tile_loadd(5, p + 192, 256);
                _tile_dpbusd(3, 4, 5);
            } else {
                _tile_dpbf16ps(0, 4, 5);
                _tile_dpbf16ps(1, 4, 6);
                _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, p + 192, 256);
                _tile_dpbf16ps(3, 4, 5);
            }
        }
        _tile_stored(0, sums, 4 * GROUP);
        _tile_stored(1, sums + 16, 4 * GROUP);
        _tile_stored(2, sums + 32, 4 * GROUP);
        _tile_stored(3, sums + 48, 4 * GROUP);
        for (int64_t r = 0; r < std::min<int64_t>(TALL, n - row); ++r)
            for (int i = 0; i < 4; ++i) {
                const float* from = sums + r * GROUP + i * W;
                int64_t at = group * GROUP + i * W;
                if (!bytes) {
                    take(row + r, at, load(from));
                    continue;
                }
                __m512i whole = _mm512_sub_epi32(_mm512_loadu_si512(from), _mm512_loadu_si512(w.sums + at));
                take(row + r, at, (vf)_mm512_cvtepi32_ps(whole) * (load(w.scale + at) * rows.scale[row + r]));
            }
    }
}
#endif

template <class Take>
inline void product(const Packed& w, const Rows& rows, int64_t n, int64_t group, Take take) {
#ifdef HAVE_TILES
    if (tiles::usable() && w.in % (w.scale ? 64 : 32) == 0) return by_tiles(w, rows, n, group, take);
#endif
    if (n <= ROWS)
        by_dots<4>(w, rows, n, group, take);
    else
        by_dots<2>(w, rows, n, group, take);
}

struct Share {
    int64_t first, last;
};
inline Share share(int64_t n) {
    int64_t t = omp_get_thread_num(), all = omp_get_num_threads();
    return {n * t / all, n * (t + 1) / all};
}

// y [n, out] = rows w (+ bias), this thread's part of it, in bfloat16 or float32.
template <class T>
void all_rows(const Packed& w, const Rows& rows, int64_t n, T* y) {
    Share mine = share((w.out + GROUP - 1) / GROUP);
    for (int64_t g = mine.first; g < mine.last; ++g)
        product(w, rows, n, g, [&](int64_t r, int64_t at, vf v) {
            int left = int(std::min<int64_t>(w.out - at, W));
            if (left <= 0) return;
            if (w.bias) v += load(w.bias + at, left, 0);
            store(y + r * w.out + at, v, left);
        });
}

// ------------------------------------------------------------------------------------------------------------ the step

inline void norm_row(const float* from, const Norm& norm, int64_t cols, float eps, bool rms, float* wide, bf16* narrow) {
    vf s{}, q{};
    for (int64_t c = 0; !rms && c < cols; c += W) s += load(from + c);
    float mean = rms ? 0 : sum(s) / cols;
    for (int64_t c = 0; c < cols; c += W) {
        vf d = load(from + c) - mean;
        q += d * d;
    }
    float factor = 1.0f / std::sqrt(sum(q) / cols + eps);
    for (int64_t c = 0; c < cols; c += W) {
        vf y = (load(from + c) - mean) * factor * load(norm.weight + c);
        if (norm.bias) y += load(norm.bias + c);
        if (wide) store(wide + c, y);
        store(narrow + c, y);
    }
}

inline void turn(const bf16* from, int64_t dim, const float* cosine, const float* sine, bf16* to) {
    if (!cosine) {
        std::memcpy(to, from, dim * sizeof(bf16));
        return;
    }
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += W) {
        vf a = load(from + i), b = load(from + half + i), c = load(cosine + i), s = load(sine + i);
        store(to + i, a * c - b * s);
        store(to + half + i, b * c + a * s);
    }
}

// One head of one token looks at keys first to last: out [dim].
inline void look(const bf16* q, const bf16* keys, const bf16* values, int64_t stride, int64_t first, int64_t last,
                 int64_t dim, float scale, const float* offsets, float* score, bf16* out) {
    int64_t count = last - first;
    float top = -INFINITY;
    for (int64_t j = 0; j < count; ++j) {
        const bf16* k = keys + (first + j) * stride;
        __m512 acc = _mm512_setzero_ps();
        for (int64_t i = 0; i < dim; i += 32)
            acc = _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(k + i), (__m512bh)_mm512_loadu_si512(q + i));
        score[j] = _mm512_reduce_add_ps(acc) * scale + (offsets ? offsets[first + j] : 0.0f);
        top = std::max(top, score[j]);
    }
    vf total{};
    for (int64_t j = 0; j < count; j += W) {
        vf e = exponential(load(score + j) - top);
        if (count - j < W)
            for (int64_t i = count - j; i < W; ++i) e[i] = 0;
        store(score + j, e);
        total += e;
    }
    float factor = 1.0f / sum(total);
    for (int64_t i = 0; i < dim; i += 32) {
        vf a{}, b{};
        for (int64_t j = 0; j < count; ++j) {
            const bf16* v = values + (first + j) * stride + i;
            a += load(v) * score[j];
            b += load(v + W) * score[j];
        }
        store(out + i, a * factor);
        store(out + i + W, b * factor);
    }
}

// What threads hand to each other.
struct Shared {
    std::vector<bf16> qkv, mixed, wide;
    std::vector<float> y;
};

inline void run(const Step& s, const Tokens& t, float* logits, int64_t* best, Shared& shared, float* tops, int64_t* places) {
    int64_t n = t.n;
    auto position = [&](int64_t r) -> int64_t { return t.owner ? t.position[r] : s.lengths[r]; };
    int64_t hidden = s.hidden, across = s.heads * s.dim, around = (s.heads + 2 * s.kv_heads) * s.dim;
    int64_t per = s.heads / s.kv_heads, stride = s.kv_heads * s.dim;
    std::vector<float> stream(n * hidden), score(std::max(s.capacity, s.cross_capacity) + W);
    std::vector<bf16> x(padded(n) * hidden), q(s.dim);
    tiles::Held held(int(std::clamp<int64_t>(n, 1, TALL)));
    Rows rows;
    bf16 *qkv = shared.qkv.data(), *mixed = shared.mixed.data(), *wide = shared.wide.data();
    float* y = shared.y.data();

    // The stream of every row, plus y if there is one, and what the next part reads of it.
    auto then = [&](const float* add, const Norm& norm, bool over) {
        for (int64_t r = 0; r < n; ++r) {
            float* line = stream.data() + r * hidden;
            if (add)
                for (int64_t c = 0; c < hidden; c += W) store(line + c, load(line + c) + load(add + r * hidden + c));
            if (norm.weight)
                norm_row(line, norm, hidden, s.eps, s.rms, over ? line : nullptr, x.data() + r * hidden);
            else
                for (int64_t c = 0; c < hidden; c += W) store(x.data() + r * hidden + c, load(line + c));
        }
    };
    for (int64_t r = 0; r < n; ++r)
        for (int64_t c = 0; c < hidden; c += W) {
            vf v = load(s.tokens + t.ids[r] * hidden + c);
            if (s.positions) v += load(s.positions + position(r) * hidden + c);
            if (s.segment) v += load(s.segment + c);
            store(stream.data() + r * hidden + c, v);
        }
    if (s.embedding_norm.weight) then(nullptr, s.embedding_norm, true);

    const float* update = nullptr;
    for (int64_t l = 0; l < s.layers; ++l) {
        const Layer& layer = s.layer[l];
        then(update, s.pre ? layer.attention_norm : Norm{}, false);
        rows.set(layer.qkv, x.data(), n);
        all_rows(layer.qkv, rows, n, qkv);
#pragma omp barrier
        // Tasks are dealt out one by one: of a prompt, later tokens look at more.
        int64_t first_task = omp_get_thread_num(), tasks = n * s.kv_heads, deal = omp_get_num_threads();
        for (int64_t task = first_task; task < tasks; task += deal) {
            int64_t r = task / s.kv_heads, g = task % s.kv_heads, at = position(r);
            const bf16 *k = qkv + r * around + across + g * s.dim, *v = k + stride;
            int64_t to = ((t.row(r) * s.capacity + at) * s.kv_heads + g) * s.dim, half = at * s.dim / 2;
            turn(k, s.dim, layer.cosine ? layer.cosine + half : nullptr, layer.sine + half, layer.keys + to);
            std::memcpy(layer.values + to, v, s.dim * sizeof(bf16));
        }
        if (t.owner) {  // else who wrote a key is who looks at it
#pragma omp barrier
        }
        for (int64_t task = first_task; task < tasks; task += deal) {
            int64_t r = task / s.kv_heads, g = task % s.kv_heads, at = position(r), half = at * s.dim / 2;
            int64_t from = (t.row(r) * s.capacity * s.kv_heads + g) * s.dim;
            int64_t first = 0, last = t.owner ? t.reach[r] : at + 1;
            if (layer.window >= 0) first = std::max(first, at - layer.window), last = std::min(last, at + layer.window + 1);
            for (int64_t h = g * per; h < (g + 1) * per; ++h) {
                turn(qkv + r * around + h * s.dim, s.dim, layer.cosine ? layer.cosine + half : nullptr, layer.sine + half, q.data());
                const float* offsets = s.distances ? s.distances + h * (2 * s.middle + 1) + s.middle - at : nullptr;
                look(q.data(), layer.keys + from, layer.values + from, stride, first, last, s.dim, s.scale, offsets,
                     score.data(), mixed + r * across + h * s.dim);
            }
        }
#pragma omp barrier
        rows.set(layer.out, mixed, n);
        all_rows(layer.out, rows, n, y);
#pragma omp barrier
        if (layer.cross_q.data) {
            then(y, s.pre ? layer.cross_norm : layer.attention_norm, !s.pre);
            rows.set(layer.cross_q, x.data(), n);
            all_rows(layer.cross_q, rows, n, qkv);
#pragma omp barrier
            for (int64_t task = first_task; task < tasks; task += deal) {
                int64_t r = task / s.kv_heads, g = task % s.kv_heads;
                int64_t from = (t.row(r) * s.cross_capacity * s.kv_heads + g) * s.dim;
                for (int64_t h = g * per; h < (g + 1) * per; ++h)
                    look(qkv + r * across + h * s.dim, layer.cross_keys + from, layer.cross_values + from, stride, 0,
                         s.cross_lengths[t.row(r)], s.dim, s.scale, nullptr, score.data(), mixed + r * across + h * s.dim);
            }
#pragma omp barrier
            rows.set(layer.cross_out, mixed, n);
            all_rows(layer.cross_out, rows, n, y);
#pragma omp barrier
        }
        then(y, s.pre ? layer.feed_forward_norm : layer.cross_q.data ? layer.cross_norm : layer.attention_norm, !s.pre);
        rows.set(layer.up, x.data(), n);
        with_bend<bf16>(int(s.bend), [&](auto bend) {
            typedef decltype(bend) Bend;
            auto biased = [&](vf v, int64_t at) { return layer.up.bias ? v + load(layer.up.bias + at) : v; };
            // Of a gated block, groups of 64 hold 32 of the first half and the 32 of the second that they multiply.
            Share some = share((layer.up.out + GROUP - 1) / GROUP);
            for (int64_t g = some.first; g < some.last; ++g) {
                if (!s.gated) {
                    product(layer.up, rows, n, g, [&](int64_t r, int64_t at, vf v) {
                        if (at < s.wide) store(wide + r * s.wide + at, Bend::value(biased(v, at)));
                    });
                    continue;
                }
                vf half[TALL][2];  // a reading of the group is shared by at most so many rows, one after the other
                product(layer.up, rows, n, g, [&](int64_t r, int64_t at, vf v) {
                    int64_t part = at % GROUP / W;
                    v = biased(v, at);
                    if (part < 2)
                        half[r % TALL][part] = Bend::value(v);
                    else
                        store(wide + r * s.wide + g * 32 + part % 2 * W, half[r % TALL][part - 2] * v);
                });
            }
        });
#pragma omp barrier
        rows.set(layer.down, wide, n);
        all_rows(layer.down, rows, n, y);
#pragma omp barrier
        update = y;
        if (!s.pre) {
            then(y, layer.feed_forward_norm, true);
            update = nullptr;
        }
    }
    if (s.pre) then(update, s.final_norm, false);
    if (t.owner) {  // from here on only those who asked
        n = t.asked;
        for (int64_t i = 0; i < n; ++i) std::memmove(x.data() + i * hidden, x.data() + t.where[i] * hidden, hidden * sizeof(bf16));
    }

    if (s.dense.data) {
        rows.set(s.dense, x.data(), n);
#pragma omp barrier  // y is read until here
        all_rows(s.dense, rows, n, y);
#pragma omp barrier
        with_bend<bf16>(int(s.head_bend), [&](auto bend) {
            typedef decltype(bend) Bend;
            for (int64_t r = 0; r < n; ++r) {
                float* line = stream.data() + r * hidden;
                for (int64_t c = 0; c < hidden; c += W) store(line + c, Bend::value(load(y + r * hidden + c)));
                norm_row(line, s.head_norm, hidden, s.eps, false, nullptr, x.data() + r * hidden);
            }
        });
    }
    if (s.logit_scale != 1.0f)
        for (int64_t i = 0; i < n * hidden; i += W) store(x.data() + i, load(x.data() + i) * s.logit_scale);
    rows.set(s.table, x.data(), n);
    std::vector<float> top(n * W, -INFINITY);
    std::vector<int32_t> place(n * W, 0);
    Share mine = share((s.vocab + GROUP - 1) / GROUP);
    for (int64_t g = mine.first; g < mine.last; ++g)
        product(s.table, rows, n, g, [&](int64_t r, int64_t at, vf v) {
            int left = int(std::min<int64_t>(s.vocab - at, W));
            if (left <= 0) return;
            if (s.table.bias) v += load(s.table.bias + at, left, 0);
            if (logits) store(logits + r * s.vocab + at, v, left);
            if (left < W)
                for (int i = left; i < W; ++i) v[i] = -INFINITY;
            __m512 had = _mm512_loadu_ps(top.data() + r * W);
            __m512i where = _mm512_loadu_si512(place.data() + r * W);
            __mmask16 more = _mm512_cmp_ps_mask((__m512)v, had, _CMP_GT_OQ);
            _mm512_storeu_ps(top.data() + r * W, _mm512_mask_mov_ps(had, more, (__m512)v));
            _mm512_storeu_si512(place.data() + r * W, _mm512_mask_mov_epi32(where, more, _mm512_set1_epi32(int(at / W))));
        });
    for (int64_t r = 0; r < n; ++r) {  // of equals, the first
        int at = 0;
        for (int i = 1; i < W; ++i) {
            float a = top[r * W + i], b = top[r * W + at];
            if (a > b || (a == b && place[r * W + i] < place[r * W + at])) at = i;
        }
        tops[omp_get_thread_num() * n + r] = top[r * W + at];
        places[omp_get_thread_num() * n + r] = int64_t(place[r * W + at]) * W + at;
    }
#pragma omp barrier
#pragma omp master
    for (int64_t r = 0; r < n; ++r) {
        int64_t who = 0;
        for (int64_t i = 1; i < omp_get_num_threads(); ++i)
            if (tops[i * n + r] > tops[who * n + r]) who = i;
        best[r] = places[who * n + r];
        if (!t.owner) s.lengths[r] += 1;
    }
}

}  // namespace step
}  // namespace

extern "C" {
// best [asked, or n] are the likeliest next tokens, logits [asked or n, vocab] all scores, if wanted. The lengths of
// sequences that read one token each grow by one.
void bk_step(const step::Step* s, const step::Tokens* t, float* logits, int64_t* best) {
    step::Shared shared;
    int64_t rows = step::padded(t->n);
    shared.qkv.resize(rows * (s->heads + 2 * s->kv_heads) * s->dim);
    shared.mixed.resize(rows * s->heads * s->dim);
    shared.wide.resize(rows * s->wide);
    shared.y.resize(rows * s->hidden);
    int threads = omp_get_max_threads();
    std::vector<float> tops(threads * t->n, -INFINITY);
    std::vector<int64_t> places(threads * t->n);
#pragma omp parallel num_threads(threads)
    step::run(*s, *t, logits, best, shared, tops.data(), places.data());
}
}
#endif

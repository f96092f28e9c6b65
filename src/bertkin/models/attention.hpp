// Attention inside each sequence, or from the sequences of another layout into them: in float32 on any processor, in bfloat16
// where there are dot products for it.
//
// One task is one head of keys and values of one sequence, with all the heads of queries that share it: what they add to
// its gradient is summed in one place and in order. Everything a task needs fits in the second-level cache, so the scores
// never reach memory. Keys that no query of a block sees are never multiplied.
#pragma once

#include <omp.h>

#include "words.hpp"

// What is looked at, by whom. Mirrored by `looks.Looks`; outside of the namespace below, as functions named in C take it.
struct Looks {
    const void *q, *k, *v;  // element [token, head, i] is at token * stride + head * dim + i
    int64_t q_stride, k_stride, v_stride;
    const int32_t *key_starts, *query_starts;    // [sequences + 1]: which keys and which queries a sequence owns
    const int32_t *position, *query_position;    // [keys], [queries]: places within the sequence
    const int32_t* reach;                        // [queries]: how many of the first keys each sees; or null
    const float *cosine, *sine;                  // [positions, dim / 2] or null
    const float* distances;                      // [heads, 2 longest - 1] or null: added at longest - 1 + key - query
    int64_t queries;                             // in all
    int32_t sequences, heads, kv_heads, dim, window, causal, across, longest;
    float scale;
    // Dropout: weights whose random bits are below `least` are zero, the others are multiplied by `more`; none where it is 0.
    uint32_t least;
    uint64_t seed;
    float more;
};

namespace {

// Which keys each query of a sequence sees: from[i] up to to[i], neither ever falling as i grows.
struct Seen {
    int32_t *from, *to;
    void fill(const Looks& s, int q0, int queries, int padded, int keys) const {
        for (int i = 0; i < padded; ++i) {
            from[i] = 0, to[i] = i < queries ? keys : 0;
            if (i >= queries || s.across) continue;
            int at = s.query_position[q0 + i];
            if (s.window >= 0) from[i] = std::max(0, at - s.window), to[i] = std::min(keys, at + s.window + 1);
            if (s.reach)
                to[i] = std::min(to[i], s.reach[q0 + i]);
            else if (s.causal)
                to[i] = std::min(to[i], at + 1);
        }
    }
};

// Which weights are dropped: the bits of a query of a head and a key are a hash of both, the same along keys as along queries.
struct Dropped {
    static constexpr uint32_t QUERY = 0x9e3779b1u, KEY = 0x85ebca77u;
    uint32_t from, of_all, least;
    float more;
    Dropped(const Looks& s, int head, int q0)
        : from(uint32_t(head * s.queries + q0) * QUERY + uint32_t(s.seed)), of_all(uint32_t(s.seed >> 32)), least(s.least), more(s.more) {}
    vf along_keys(int query, int key) const { return factor(ladder(from + query * QUERY + key * KEY, KEY)); }
    vf along_queries(int query, int key) const { return factor(ladder(from + query * QUERY + key * KEY, QUERY)); }
    vf factor(vu h) const { return scrambled(h, of_all) < least ? vf{} : splat(more); }
};

constexpr int BLOCK = 64;  // queries (or keys) handled at a time: a multiple of 32, so that tiles are whole
constexpr int SLACK = 64;  // numbers after a row that vectors may read or write beyond its end

template <class T>
struct Task {
    int sequence, q0, queries, k0, keys, kv, group;
    const T *q, *k, *v;  // of the first head of the group
    Task(const Looks& s, int task) {
        sequence = task / s.kv_heads, kv = task % s.kv_heads, group = s.heads / s.kv_heads;
        q0 = s.query_starts[sequence], queries = s.query_starts[sequence + 1] - q0;
        k0 = s.key_starts[sequence], keys = s.key_starts[sequence + 1] - k0;
        q = (const T*)s.q + q0 * s.q_stride + kv * group * s.dim;
        k = (const T*)s.k + k0 * s.k_stride + kv * s.dim;
        v = (const T*)s.v + k0 * s.v_stride + kv * s.dim;
    }
};

template <class T>
void attention_task(const Looks& s, const Task<T>& t, T* out, float* lse) {
    typedef typename Words<T>::type Word;
    constexpr int EACH = Words<T>::EACH;
    int kp = up(t.keys, 32), dim = s.dim, qp = up(t.queries, 16), columns = 2 * s.longest - 1;
    Buffer& b = buffer();
    b.need(size_t(kp) * dim * sizeof(T) * 3 + size_t(BLOCK) * (kp + dim) * (4 + sizeof(T)) + size_t(qp) * 8 +
           size_t(columns + SLACK) * 4 + 4096);
    T* rows = b.take<T>(size_t(kp) * dim);
    Word* kt = b.take<Word>(size_t(dim / EACH) * kp);
    Word* vp = b.take<Word>(size_t(kp / EACH) * dim);
    T* qr = b.take<T>(size_t(BLOCK) * dim);
    float* score = b.take<float>(size_t(BLOCK) * kp);
    T* prob = b.take<T>(size_t(BLOCK) * kp);
    float* mix = b.take<float>(size_t(BLOCK) * dim);
    Seen seen{b.take<int32_t>(qp), b.take<int32_t>(qp)};
    float* offset = s.distances ? b.take<float>(columns + SLACK) : nullptr;

    gather(t.k, s.k_stride, t.keys, kp, dim, s.cosine, s.sine, s.position + t.k0, rows);
    words_across(rows, kp, dim, kt);
    gather(t.v, s.v_stride, t.keys, kp, dim, nullptr, nullptr, nullptr, rows);
    words_down(rows, kp, dim, vp);
    seen.fill(s, t.q0, t.queries, qp, t.keys);

    for (int g = 0; g < t.group; ++g) {
        int head = t.kv * t.group + g;
        Dropped dropped(s, head, t.q0);
        if (offset) {
            std::memcpy(offset, s.distances + int64_t(head) * columns, columns * sizeof(float));
            std::memset(offset + columns, 0, SLACK * sizeof(float));
        }
        for (int q0 = 0; q0 < t.queries; q0 += BLOCK) {
            int m = std::min(BLOCK, t.queries - q0);
            const int32_t* place = s.query_position + t.q0 + q0;
            gather(t.q + q0 * s.q_stride + g * dim, s.q_stride, m, m, dim, s.cosine, s.sine, place, qr);
            // The keys that any query of the block may see, widened to whole vectors.
            int lo = seen.from[q0] / 32 * 32, hi = up(seen.to[q0 + m - 1], 32), n = std::max(hi - lo, 0);
            product(m, n, dim / EACH, reinterpret_cast<Word*>(qr), dim / EACH, kt + lo, kp, score, kp, false);
            float inverse[BLOCK];
            for (int r = 0; r < m; ++r) {
                int from = seen.from[q0 + r] - lo, to = seen.to[q0 + r] - lo;
                float *line = score + int64_t(r) * kp, scale = s.scale;
                if (offset) {
                    const float* add = offset + lo - place[r] + s.longest - 1;
                    for (int c = 0; c < n; c += W) store(line + c, load(line + c) * scale + load(add + c));
                    scale = 1;
                }
                for (int c = 0; c < from; ++c) line[c] = -INFINITY;
                for (int c = std::max(to, 0); c < n; ++c) line[c] = -INFINITY;
                vf best = splat(-INFINITY);
                for (int c = 0; c < n; c += W) best = larger(best, load(line + c));
                float top = largest(best) * scale;
                vf total{};
                for (int c = 0; c < n; c += W) {
                    vf x = load(line + c);
                    vf p = x < -1e30f ? vf{} : exponential(x * scale - top);
                    total += p;
                    if (s.least) p *= dropped.along_keys(q0 + r, lo + c);
                    store(prob + int64_t(r) * kp + c, p);
                }
                float all = sum(total);
                inverse[r] = all > 0 ? 1.0f / all : 0;
                // Who sees nothing gets nothing, and hands nothing back.
                if (lse) lse[head * s.queries + t.q0 + q0 + r] = all > 0 ? top + std::log(all) : INFINITY;
            }
            Word* weights = reinterpret_cast<Word*>(prob);
            product(m, dim, n / EACH, weights, kp / EACH, vp + int64_t(lo / EACH) * dim, dim, mix, dim, false);
            T* to = out + (int64_t(t.q0 + q0) * s.heads + head) * dim;
            for (int r = 0; r < m; ++r)
                for (int i = 0; i < dim; i += W)
                    store(to + int64_t(r) * s.heads * dim + i, load(mix + r * dim + i) * inverse[r]);
        }
    }
}

template <class T>
struct Gradients {
    T *q, *k, *v;
    int64_t q_stride, kv_stride;
    float* distances;  // [sequences, heads, 2 longest - 1], each sequence's share; or null
};

template <class T>
void attention_backward_task(const Looks& s, const Task<T>& t, const T* out, const T* d_out, const float* lse,
                             const Gradients<T>& d) {
    typedef typename Words<T>::type Word;
    constexpr int EACH = Words<T>::EACH;
    int dim = s.dim, queries = t.queries, keys = t.keys, qp = up(queries, 32), kp = up(keys, 32), columns = 2 * s.longest - 1;
    Buffer& b = buffer();
    b.need(size_t(qp) * dim * (4 + 6 * sizeof(T)) + size_t(kp) * dim * (8 + 2 * sizeof(T)) +
           size_t(BLOCK) * (size_t(qp) * (8 + 3 * sizeof(T)) + dim * sizeof(T)) + size_t(qp) * (16 + 64) +
           size_t(columns + SLACK) * 8 + 8192);
    T* qr = b.take<T>(size_t(qp) * dim);
    T* gr = b.take<T>(size_t(qp) * dim);
    Word* qt = b.take<Word>(size_t(dim / EACH) * qp);
    Word* gt = b.take<Word>(size_t(dim / EACH) * qp);
    Word* qd = b.take<Word>(size_t(qp / EACH) * dim);
    Word* gd = b.take<Word>(size_t(qp / EACH) * dim);
    float* dq_sum = b.take<float>(size_t(qp) * dim);
    T* kr = b.take<T>(size_t(kp) * dim);
    Word* kd = b.take<Word>(size_t(kp / EACH) * dim);
    float* dk_sum = b.take<float>(size_t(kp) * dim);
    float* dv_sum = b.take<float>(size_t(kp) * dim);
    T* vr = b.take<T>(size_t(BLOCK) * dim);
    float* score = b.take<float>(size_t(BLOCK) * qp);
    float* d_prob = b.take<float>(size_t(BLOCK) * qp);
    T* prob = b.take<T>(size_t(BLOCK) * qp);
    T* d_score = b.take<T>(size_t(BLOCK) * qp);
    Word* woven = b.take<Word>(size_t(16) * qp);
    Word* d_score_across = b.take<Word>(size_t(BLOCK / EACH) * qp);
    float* delta = b.take<float>(qp);
    float* norm = b.take<float>(qp);
    Seen seen{b.take<int32_t>(qp), b.take<int32_t>(qp)};
    // Offsets by distance run from the farthest key ahead to the farthest behind, so that along queries they go upwards.
    float* offset = s.distances ? b.take<float>(columns + SLACK) : nullptr;
    float* d_offset = s.distances ? b.take<float>(columns + SLACK) : nullptr;

    gather(t.k, s.k_stride, keys, kp, dim, s.cosine, s.sine, s.position + t.k0, kr);
    words_down(kr, kp, dim, kd);
    seen.fill(s, t.q0, queries, qp, keys);
    const int32_t* place = s.query_position + t.q0;
    bool limited = !s.across && (s.window >= 0 || s.causal || s.reach);
    bool in_a_row = true;
    for (int i = 1; i < queries; ++i) in_a_row &= place[i] == place[i - 1] + 1;
    int64_t row = int64_t(s.heads) * dim;
    T *dk = d.k + t.k0 * d.kv_stride + t.kv * dim, *dv = d.v + t.k0 * d.kv_stride + t.kv * dim;
    for (int g = 0; g < t.group; ++g) {
        int head = t.kv * t.group + g;
        bool last = g == t.group - 1;
        Dropped dropped(s, head, t.q0);
        const T *o = out + t.q0 * row + head * dim, *from_above = d_out + t.q0 * row + head * dim;
        gather(t.q + g * dim, s.q_stride, queries, qp, dim, s.cosine, s.sine, place, qr);
        gather(from_above, row, queries, qp, dim, nullptr, nullptr, nullptr, gr);
        words_across(qr, qp, dim, qt);
        words_across(gr, qp, dim, gt);
        words_down(qr, qp, dim, qd);
        words_down(gr, qp, dim, gd);
        std::memset(dq_sum, 0, size_t(qp) * dim * sizeof(float));
        for (int r = 0; r < qp; ++r) {
            vf x{};
            if (r < queries)
                for (int i = 0; i < dim; i += W) x += load(o + r * row + i) * load(gr + r * dim + i);
            delta[r] = sum(x);
            // A padded query has probability zero everywhere.
            norm[r] = r < queries ? lse[head * s.queries + t.q0 + r] : INFINITY;
        }
        if (offset) {
            const float* from = s.distances + int64_t(head) * columns;
            for (int i = 0; i < columns; ++i) offset[i] = from[columns - 1 - i];
            std::memset(offset + columns, 0, SLACK * sizeof(float));
            std::memset(d_offset, 0, (columns + SLACK) * sizeof(float));
        }
        for (int k0 = 0; k0 < keys; k0 += BLOCK) {
            int m = std::min(BLOCK, keys - k0), whole = up(m, 32);
            // The queries that may see any key of the block, widened to whole vectors.
            int lo = 0, hi = qp;
            if (limited) {
                int from = 0, to = queries;
                while (from < queries && seen.to[from] <= k0) ++from;
                while (to > from && seen.from[to - 1] >= k0 + m) --to;
                lo = from / 32 * 32, hi = from == to ? lo : up(to, 32);
            }
            int n = hi - lo;
            float *dk_row = dk_sum + int64_t(k0) * dim, *dv_row = dv_sum + int64_t(k0) * dim;
            if (n > 0) {
                gather(t.v + k0 * s.v_stride, s.v_stride, m, m, dim, nullptr, nullptr, nullptr, vr);
                Word *left = reinterpret_cast<Word*>(kr + int64_t(k0) * dim), *value = reinterpret_cast<Word*>(vr);
                product(m, n, dim / EACH, left, dim / EACH, qt + lo, qp, score, qp, false);
                product(m, n, dim / EACH, value, dim / EACH, gt + lo, qp, d_prob, qp, false);
            }
            for (int r = 0; r < whole && n > 0; ++r) {
                T *p_line = prob + int64_t(r) * qp, *d_line = d_score + int64_t(r) * qp;
                if (r >= m) {
                    std::memset(d_line, 0, n * sizeof(T));
                    continue;
                }
                int key = k0 + r, middle = s.longest - 1 - key;
                for (int c = 0; c < n; c += W) {
                    vf x = load(score + int64_t(r) * qp + c) * s.scale;
                    if (offset && in_a_row)
                        x += load(offset + middle + place[0] + lo + c);
                    else if (offset)
                        for (int i = 0; i < W && lo + c + i < queries; ++i) x[i] += offset[middle + place[lo + c + i]];
                    vf p = exponential(x - load(norm + lo + c));
                    if (lo + c + W > queries || limited) {
                        vi from = *reinterpret_cast<const vi*>(seen.from + lo + c);
                        vi to = *reinterpret_cast<const vi*>(seen.to + lo + c);
                        p = (from <= key) & (to > key) ? p : vf{};
                    }
                    vf kept = s.least ? dropped.along_queries(lo + c, key) : splat(1);
                    vf ds = p * (load(d_prob + int64_t(r) * qp + c) * kept - load(delta + lo + c));
                    store(p_line + c, p * kept);
                    store(d_line + c, ds * s.scale);
                    if (offset && in_a_row) {
                        float* to = d_offset + middle + place[0] + lo + c;
                        store(to, load(to) + ds);
                    } else if (offset) {
                        for (int i = 0; i < W && lo + c + i < queries; ++i) d_offset[middle + place[lo + c + i]] += ds[i];
                    }
                }
            }
            if (n > 0) {
                // Queries by words of keys: [n, whole / EACH].
                for (int r = 0; r < whole; r += 16 * EACH) {
                    words_down(d_score + int64_t(r) * qp, 16 * EACH, n, woven, qp);
                    for (int c = 0; c < n; c += 16)
                        transpose16(woven + c, n, d_score_across + int64_t(c) * (BLOCK / EACH) + r / EACH, BLOCK / EACH);
                }
                Word *p = reinterpret_cast<Word*>(prob), *ds = reinterpret_cast<Word*>(d_score);
                float* dq_row = dq_sum + int64_t(lo) * dim;
                product(m, dim, n / EACH, p, qp / EACH, gd + int64_t(lo / EACH) * dim, dim, dv_row, dim, g > 0);
                product(m, dim, n / EACH, ds, qp / EACH, qd + int64_t(lo / EACH) * dim, dim, dk_row, dim, g > 0);
                product(n, dim, whole / EACH, d_score_across, BLOCK / EACH, kd + int64_t(k0 / EACH) * dim, dim, dq_row, dim, true);
            } else if (g == 0) {
                std::memset(dk_row, 0, size_t(m) * dim * sizeof(float));
                std::memset(dv_row, 0, size_t(m) * dim * sizeof(float));
            }
            if (last) {
                scatter(dv_row, m, dim, nullptr, nullptr, nullptr, dv + k0 * d.kv_stride, d.kv_stride);
                scatter(dk_row, m, dim, s.cosine, s.sine, s.position + t.k0 + k0, dk + k0 * d.kv_stride, d.kv_stride);
            }
        }
        scatter(dq_sum, queries, dim, s.cosine, s.sine, place, d.q + t.q0 * d.q_stride + head * dim, d.q_stride);
        if (offset) {
            float* to = d.distances + (int64_t(t.sequence) * s.heads + head) * columns;
            for (int i = 0; i < columns; ++i) to[i] = d_offset[columns - 1 - i];
        }
    }
}

template <class T>
void attention(const Looks& s, T* out, float* lse) {
#pragma omp parallel
    {
        tiles::Held held;
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < s.sequences * s.kv_heads; ++i) {
            Task<T> task(s, i);
            if (task.queries) attention_task(s, task, out, lse);
        }
    }
}

template <class T>
void attention_backward(const Looks& s, const T* out, const T* d_out, const float* lse, const Gradients<T>& d) {
#pragma omp parallel
    {
        tiles::Held held;
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < s.sequences * s.kv_heads; ++i) attention_backward_task(s, Task<T>(s, i), out, d_out, lse, d);
    }
}

}  // namespace

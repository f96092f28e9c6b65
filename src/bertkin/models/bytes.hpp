// Feed-forward blocks in products of bytes: twice as fast as dot products of bfloat16, where there are no tiles.
//
// A weight is int8 with a scale for each output, and lies in memory as it is read (`step.hpp`). What it is multiplied with becomes
// bytes row by row: 0 is the smallest number of the row and 255 its largest, so that
//     sum over i of w_i x_i  =  w's scale * (x's scale * sum of bytes' products  +  x's smallest * sum of w's bytes).
// A thread takes some rows through the whole block, both products with the bend between them, and all of it stays in the
// second-level cache; weights are read from the third.
#pragma once

#include "gemm.hpp"
#include "step.hpp"

namespace {
namespace bytes {

using gemm::ceil_div;
using gemm::round_up;
constexpr int MR = step::ROWS, NR = step::GROUP;  // rows and columns of a tile: 24 sums in registers
constexpr int64_t MOST_ROWS = 48;                 // that a thread takes at a time

// Rows as bytes: x = scale * byte + low.
struct Rows {
    uint8_t* at;
    float *scale, *low;
};

// n, a multiple of 16, numbers of one row. A row with a number that is none has a scale that is none.
inline void to_bytes(const bf16* x, int64_t n, const Rows& out, int64_t row) {
    vf least = splat(INFINITY), most = splat(-INFINITY), all{};
    for (int64_t i = 0; i < n; i += W) {
        vf v = load(x + i);
        least = smaller(least, v), most = larger(most, v), all += v;
    }
    float low = -largest(-least), high = largest(most), scale = std::max((high - low) / 255.0f, 1e-30f), total = sum(all);
    out.low[row] = low, out.scale[row] = std::isfinite(total) ? scale : NAN;
    vf per = splat(1 / scale);
    for (int64_t i = 0; i < n; i += W) {
        __m512i q = _mm512_cvtps_epi32((__m512)((load(x + i) - low) * per));
        _mm_storeu_si128((__m128i*)(out.at + row * n + i), _mm512_cvtusepi32_epi8(q));
    }
}

// M rows times 64 outputs.
template <int M, class Bend>
inline void tile(const Rows& x, int64_t row, const step::Packed& w, int64_t panel, bf16* c, Bend) {
    __m512i sums[M][4];
    alignas(64) int32_t found[M][NR];
    const int32_t* a[M];
    for (int m = 0; m < M; ++m) a[m] = (const int32_t*)(x.at + (row + m) * w.in);
    step::dot_bytes(a, (const char*)w.data + panel * NR * w.in, w.in / 4, sums, [](const char*) {});
#pragma GCC unroll 32
    for (int j = 0; j < 4 * M; ++j) _mm512_store_si512(found[j / 4] + j % 4 * W, sums[j / 4][j % 4]);
    for (int j = 0; j < 4; ++j) {
        int64_t at = panel * NR + j * W;
        vf scale = load(w.scale + at), of_bytes = (vf)_mm512_cvtepi32_ps(_mm512_loadu_si512(w.sums + at)) * (1.0f / 128);
        vf bias = w.bias ? load(w.bias + at) : vf{};
        for (int m = 0; m < M; ++m) {
            vf sum = (vf)_mm512_cvtepi32_ps(_mm512_load_si512(found[m] + j * W));
            vf y = sum * x.scale[row + m] + of_bytes * x.low[row + m];
            store(c + (row + m) * w.out + at, Bend::value(y * scale + bias));
        }
    }
}

// c [rows, out], of whole panels, bent.
template <class Bend>
void product(const Rows& x, int64_t rows, const step::Packed& w, bf16* c, Bend bend) {
    for (int64_t panel = 0; panel < w.out / NR; ++panel) {  // which stays in cache while all rows pass
        int64_t r = 0;
        for (; r + MR <= rows; r += MR) tile<MR>(x, r, w, panel, c, bend);
        switch (rows - r) {
            case 5: tile<5>(x, r, w, panel, c, bend); break;
            case 4: tile<4>(x, r, w, panel, c, bend); break;
            case 3: tile<3>(x, r, w, panel, c, bend); break;
            case 2: tile<2>(x, r, w, panel, c, bend); break;
            case 1: tile<1>(x, r, w, panel, c, bend); break;
        }
    }
}

struct Straight {
    static vf value(vf x) { return x; }
};

// y [m, down.out] = bend(x [m, up.in] up) down; outputs are multiples of 64.
template <class Bend>
void feed_forward(const bf16* x, int64_t m, const step::Packed& up, const step::Packed& down, bf16* y, Bend bend) {
    int64_t threads = omp_get_max_threads(), turns = ceil_div(m, threads * MOST_ROWS);
    int64_t most = round_up(ceil_div(m, threads * turns), MR);  // as many for every thread
#pragma omp parallel
    {
        static thread_local gemm::Scratch scratch;
        int64_t wide = std::max(up.in, down.in);
        char* base = scratch.take(most * (wide + 2 * up.out + 8));
        bf16* bent = (bf16*)base;
        float* numbers = (float*)(base + 2 * most * up.out);
        Rows rows{(uint8_t*)(numbers + 2 * most), numbers, numbers + most};
#pragma omp for schedule(dynamic, 1)
        for (int64_t from = 0; from < m; from += most) {
            int64_t n = std::min(most, m - from);
            for (int64_t r = 0; r < n; ++r) to_bytes(x + (from + r) * up.in, up.in, rows, r);
            product(rows, n, up, bent, bend);
            for (int64_t r = 0; r < n; ++r) to_bytes(bent + r * up.out, down.in, rows, r);
            product(rows, n, down, y + from * down.out, Straight{});
        }
    }
}

}  // namespace bytes
}  // namespace

// The products of gemm.hpp by matrix tiles, from operands packed in the same way: strips of 32 rows of a, panels of b.
//
// Tiles multiply so fast that moving numbers sets the pace: b is packed once for many strips, what a block reads stays in the
// first-level cache, and the lines of c are asked for before its sums are there.
#pragma once

#include "gemm.hpp"
#include "tiles.hpp"

#ifdef HAVE_TILES

namespace tiles {

using gemm::ceil_div;
using gemm::half;
using gemm::Matrix;
using gemm::Out;
using gemm::pairs;
using gemm::round_up;

constexpr int SIDE = 32;                    // rows and columns of a block
constexpr int64_t STEP = 256, WHOLE = 384;  // k goes in steps of about 256, but in one when it is at most 384
constexpr int64_t WIDE = 1 << 18;           // numbers of b that are packed at a time: a quarter of the second-level cache
constexpr int64_t STRIP = 96;               // rows of a lying across that are packed at a time

// The sums of a block, rounded once, to where they belong.
inline void finish(const float* sums, int64_t sums_row, half* c, int64_t c_row, int64_t rows, int64_t cols, const half* bias, bool add) {
    __m512 low = bias ? gemm::widen(bias, cols) : _mm512_setzero_ps();
    __m512 high = bias ? gemm::widen(bias + 16, cols - 16) : _mm512_setzero_ps();
    __mmask32 mask = gemm::first(cols);
    for (int64_t r = 0; r < rows; ++r, sums += sums_row, c += c_row) {
        __m512 x = _mm512_add_ps(_mm512_loadu_ps(sums), low), y = _mm512_add_ps(_mm512_loadu_ps(sums + 16), high);
        if (add) x = _mm512_add_ps(x, gemm::widen(c, cols)), y = _mm512_add_ps(y, gemm::widen(c + 16, cols - 16));
        _mm512_mask_storeu_epi16(c, mask, (__m512i)_mm512_cvtne2ps_pbh(y, x));
    }
}

// A strip of a whose rows lie along k, with zeros up to 32 rows and to whole tiles.
inline void copy_a(const half* a, int64_t row, int64_t k, int64_t m, pairs* out, int64_t out_row) {
    for (int64_t r = 0; r < SIDE; ++r, a += row, out += out_row)
        for (int64_t i = 0; i < k; i += 32)
            _mm512_store_si512(out + i / 2, r < m ? _mm512_maskz_loadu_epi16(gemm::first(k - i), a + i) : _mm512_setzero_si512());
}

// Panels of 32 columns of b [k, n] or [n, k], with zeros up to whole tiles.
inline void pack_b(Matrix b, int64_t k0, int64_t n0, int64_t k, int64_t n, pairs* out, int64_t k2) {
    if (!b.down) return gemm::pack_b_along<SIDE>(b.at + n0 * b.row + k0, b.row, k, n, out, k2);
    gemm::pack_b_down<SIDE>(b.at + k0 * b.row + n0, b.row, k, n, out, k2);
    int64_t packed = ceil_div(k, 2), whole = round_up(k, 32) / 2;
    for (int64_t panel = 0; panel < ceil_div(n, SIDE) && packed < whole; ++panel)
        std::memset(out + (panel * k2 + packed) * SIDE, 0, 4 * SIDE * (whole - packed));
}

// As gemm::product.
template <class After>
void product(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, Out out, After after) {
    int64_t steps = k <= WHOLE ? 1 : ceil_div(k, STEP), kc = round_up(ceil_div(k, steps), 32);
    steps = ceil_div(k, kc);
    int64_t k2 = kc / 2, a_row = k2 + 16;
    int64_t blocks = ceil_div(n, std::max<int64_t>(WIDE / kc / SIDE * SIDE, 256)), nb = round_up(ceil_div(n, blocks), SIDE);
    blocks = ceil_div(n, nb);
    int64_t threads = omp_get_max_threads(), per = ceil_div(m, 512);
    while (blocks * per < 8 * threads && blocks * per % threads && per * 64 < m) ++per;
    int64_t mb = round_up(ceil_div(m, per), SIDE);
    per = ceil_div(m, mb);
#pragma omp parallel
    {
        static thread_local gemm::Scratch scratch;
        Held held;
        size_t b_bytes = 4 * k2 * nb, a_bytes = 4 * a_row * STRIP;
        char* base = scratch.take(b_bytes + a_bytes + 4 * (steps > 1 ? mb * nb : SIDE * SIDE));
        pairs* b_packed = reinterpret_cast<pairs*>(base);
        pairs* a_packed = reinterpret_cast<pairs*>(base + b_bytes);
        float* sums = reinterpret_cast<float*>(base + b_bytes + a_bytes);
        int64_t holds = -1;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < blocks * per; ++task) {
            int64_t n0 = task / per * nb, m0 = task % per * mb;
            int64_t cols = std::min(nb, n - n0), rows = std::min(mb, m - m0);
            for (int64_t s = 0; s < steps; ++s) {
                int64_t k0 = s * kc, kk = std::min(kc, k - k0), whole = round_up(kk, 32);
                int64_t asks = ceil_div(32 * SIDE, whole);  // lines of c asked for with every tile of k
                bool last = s == steps - 1;
                if (steps > 1 || holds != n0) pack_b(b, k0, n0, kk, cols, b_packed, k2), holds = n0;
                for (int64_t i = 0; i < rows; i += SIDE) {
                    int64_t tall = std::min<int64_t>(SIDE, rows - i), row = 2 * a.row;
                    const half* from = a.at + (m0 + i) * a.row + k0;
                    if (a.down) {
                        if (i % STRIP == 0) {
                            int64_t strip = std::min(STRIP, rows - i);
                            gemm::pack_a_down(a.at + k0 * a.row + m0 + i, a.row, kk, strip, a_packed, a_row);
                            if (out.row_sums && n0 == 0)
                                gemm::sum_rows(a_packed, a_row, whole / 2, strip, out.row_sums + m0 + i, s == 0);
                        }
                        from = reinterpret_cast<const half*>(a_packed + i % STRIP * a_row), row = 4 * a_row;
                    } else if (tall < SIDE || kk < whole) {
                        copy_a(from, a.row, kk, tall, a_packed, a_row);
                        from = reinterpret_cast<const half*>(a_packed), row = 4 * a_row;
                    }
                    for (int64_t j = 0; j < cols; j += SIDE) {
                        half* to = out.c + (m0 + i) * out.row + n0 + j;
                        const pairs* right = b_packed + j * k2;
                        float* at = steps > 1 ? sums + i * nb + j : sums;
                        int64_t at_row = steps > 1 ? nb : SIDE;
                        int64_t asked = last ? 0 : tall;
                        block<2, 2>(from, row, right, 4 * SIDE, whole, at, 4 * at_row, s > 0, [&] {
                            for (int64_t end = std::min(asked + asks, tall); asked < end; ++asked)
                                _mm_prefetch(to + asked * out.row + SIDE - 1, _MM_HINT_ET0);
                        });
                        if (last) finish(at, at_row, to, out.row, tall, cols - j, out.bias ? out.bias + n0 + j : nullptr, out.add);
                    }
                    if (last) after(m0 + i, tall, n0, cols);
                }
            }
        }
    }
}

}  // namespace tiles

#endif

// Vectors of float32 numbers, as many as the processor takes at a time, read from and written to float32 or bfloat16, and the few
// functions of them that a Transformer needs. GCC/Clang vector extensions, so any processor can compile it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define HAVE_BF16_DOT 1
#endif

namespace {

// Not more: of a vector that does not fit a register, compilers take the numbers one by one.
#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float vf __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * W), aligned(2), may_alias));

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
// The last n < W elements of a row; missing lanes read as `fill`.
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

// Of all lanes. Left to itself the compiler takes them one after the other.
#ifdef HAVE_BF16_DOT
inline float sum(vf x) { return _mm512_reduce_add_ps((__m512)x); }
inline float largest(vf x) { return _mm512_reduce_max_ps((__m512)x); }
#else
template <class Join>
inline float joined(vf x, Join join) {
    float lanes[W];
    store(lanes, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
    return lanes[0];
}
inline float sum(vf x) {
    return joined(x, [](float a, float b) { return a + b; });
}
inline float largest(vf x) {
    return joined(x, [](float a, float b) { return a > b ? a : b; });
}
#endif
// Where one of them is no number (NaN), the second.
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf smaller(vf a, vf b) { return a < b ? a : b; }

// Bits that look random, of numbers that do not: the lanes' own and one of all.
inline vu scrambled(vu h, uint32_t of_all) {
    h = (h ^ (h >> 16)) * 0x7feb352du;
    h ^= of_all;
    h = (h ^ (h >> 15)) * 0x846ca68bu;
    h = (h ^ (h >> 16)) * 0x7feb352du;
    return h ^ (h >> 15);
}
// from, from + step, from + 2 step ...
inline vu ladder(uint32_t from, uint32_t step) {
    vu h;
    for (int lane = 0; lane < W; ++lane) h[lane] = from + lane * step;
    return h;
}

// e^x to about 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, then n into the exponent.
inline vf exponential(vf x) {
    x = smaller(splat(88.7f), larger(splat(-87.3f), x));  // NaN stays NaN
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

#ifdef HAVE_BF16_DOT
// 2^x to 3 units in the last place, from zero to infinity.
inline __m512 power_of_two(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}
#endif

// The error function (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7); also hands back e^(-x^2).
inline vf error_function(vf x, vf& gaussian) {
    vf size = reinterpret_cast<vf>(reinterpret_cast<vi>(x) & 0x7fffffff), below = 1.0f + 0.3275911f * size;
#ifdef HAVE_BF16_DOT
    vf t = _mm512_rcp14_ps(below);  // 14 bits of the reciprocal; a step of Newton's doubles them, at half a division's price
    t = t * (2.0f - below * t);
    gaussian = power_of_two(larger(x * x * -1.44269504f, splat(-150.0f)));
#else
    vf t = 1.0f / below;
    gaussian = exponential(-x * x);
#endif
    vf p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf y = 1.0f - p * t * gaussian;
    return reinterpret_cast<vf>(reinterpret_cast<vi>(y) | (reinterpret_cast<vi>(x) & int32_t(0x80000000)));
}

// ------------------------------------------------------------------------------------------------------------- bends

constexpr float ROOT_HALF = 0.70710678f, ROOT_TWO_PI = 0.39894228f;

// Each bend has its value, and its slope together with its value.
struct Gelu {
    static vf value(vf x) {
        vf g;
        return 0.5f * x * (1.0f + error_function(x * ROOT_HALF, g));
    }
    static vf slope(vf x, vf& value) {
        vf g;
        vf cdf = 0.5f * (1.0f + error_function(x * ROOT_HALF, g));
        value = x * cdf;
        return cdf + x * g * ROOT_TWO_PI;
    }
};

// The same where bfloat16 is read and written: the normal distribution and the slope, each less a half, as odd polynomials up to
// 4.5 (least squares, reweighted towards the largest error: 2e-5 and 5e-5, where a rounding to bfloat16 near 1 is 2e-3).
struct GeluHalf {
    static constexpr float END = 4.5f;
    template <int N>
    static vf odd(vf x, const float (&factors)[N]) {
        vf a = larger(smaller(x, splat(END)), splat(-END)), z = a * a * (2 / (END * END)) - 1.0f, p = splat(factors[0]);
        for (int i = 1; i < N; ++i) p = p * z + factors[i];
        return p * a;
    }
    static vf cdf(vf x) {
        constexpr float factors[] = {4.203339107e-03f, -1.003261283e-02f, 1.098118816e-02f, -1.579804718e-02f, 2.814689651e-02f,
                                     -4.090368375e-02f, 5.475579947e-02f, -7.714182884e-02f, 1.569030881e-01f};
        return larger(smaller(odd(x, factors), splat(0.5f)), splat(-0.5f)) + 0.5f;
    }
    static vf value(vf x) { return x * cdf(x); }
    static vf slope(vf x, vf& value) {
        constexpr float factors[] = {-2.472348325e-02f, 5.596710742e-02f, -4.548339173e-02f, 4.773259908e-02f, -8.775822818e-02f,
                                     1.050390005e-01f, -9.536764026e-02f, 8.618592471e-02f, -8.992300183e-02f, 1.594457626e-01f};
        value = x * cdf(x);
        return odd(x, factors) + 0.5f;
    }
};

// (1 + tanh u) / 2 is the logistic function of 2 u.
struct GeluTanh {
    static constexpr float A = 1.5957691f, B = 0.044715f;  // A: twice the root of 2 / pi
    static vf value(vf x) { return x / (1.0f + exponential(-A * x * (1.0f + B * x * x))); }
    static vf slope(vf x, vf& value) {
        vf s = 1.0f / (1.0f + exponential(-A * x * (1.0f + B * x * x)));
        value = x * s;
        return s + value * (1.0f - s) * A * (1.0f + 3.0f * B * x * x);
    }
};

struct Relu {
    static vf value(vf x) { return larger(vf{}, x); }
    static vf slope(vf x, vf& value) {
        value = larger(vf{}, x);
        return x > 0.0f ? splat(1) : vf{};
    }
};

struct Silu {
    static vf value(vf x) { return x / (1.0f + exponential(-x)); }
    static vf slope(vf x, vf& value) {
        vf s = 1.0f / (1.0f + exponential(-x));
        value = x * s;
        return s + value * (1.0f - s);
    }
};

// Calls `f` with the bend that a number stands for (`kernels.BENDS`), of numbers that are kept as T.
template <class T, class F>
inline void with_bend(int kind, F f) {
    switch (kind) {
        case 0: return f(std::conditional_t<sizeof(T) == 2, GeluHalf, Gelu>{});
        case 1: return f(GeluTanh{});
        case 2: return f(Relu{});
        default: return f(Silu{});
    }
}

}  // namespace

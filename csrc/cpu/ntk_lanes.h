// Vectors of floats and the one matrix kernel of the ntk family. Compiled once for each instruction set (see isa.h).
//
// Unlike the other families this one fuses multiplications and additions where the instruction set can: its files are
// compiled with FMA, and the intrinsics say where.
#pragma once

#include "isa.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define ADVFAST_INLINE inline __attribute__((always_inline))
#define ADVFAST_UNROLL _Pragma("GCC unroll 16")
#define ADVFAST_PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define ADVFAST_INLINE inline
#define ADVFAST_UNROLL
#define ADVFAST_PREFETCH(address)
#endif

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// kRows x kVectors sums, one row's factor and kVectors columns fit into the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;
struct Lanes {
    __m512 v;
};
ADVFAST_INLINE Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
ADVFAST_INLINE void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.v); }
ADVFAST_INLINE Lanes all(float a) { return {_mm512_set1_ps(a)}; }
ADVFAST_INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
ADVFAST_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Zero where the mask is.
ADVFAST_INLINE Lanes masked(Lanes a, const int32_t* mask) {
    return {_mm512_and_ps(a.v, _mm512_castsi512_ps(_mm512_loadu_si512(mask)))};
}
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6;
struct Lanes {
    __m256 v;
};
ADVFAST_INLINE Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
ADVFAST_INLINE void store(float* to, Lanes a) { _mm256_storeu_ps(to, a.v); }
ADVFAST_INLINE Lanes all(float a) { return {_mm256_set1_ps(a)}; }
ADVFAST_INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
ADVFAST_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
ADVFAST_INLINE Lanes masked(Lanes a, const int32_t* mask) {
    return {_mm256_and_ps(a.v, _mm256_loadu_ps(reinterpret_cast<const float*>(mask)))};
}
#elif defined(__GNUC__)
constexpr int kLanes = 4, kRows = 4;
typedef float Floats __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(16), aligned(4), may_alias));
struct Lanes {
    Floats v;
};
ADVFAST_INLINE Lanes load(const float* from) { return {*reinterpret_cast<const Floats*>(from)}; }
ADVFAST_INLINE void store(float* to, Lanes a) { *reinterpret_cast<Floats*>(to) = a.v; }
ADVFAST_INLINE Lanes all(float a) { return {Floats{a, a, a, a}}; }
ADVFAST_INLINE Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
ADVFAST_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {a.v * b.v + c.v}; }
ADVFAST_INLINE Lanes masked(Lanes a, const int32_t* mask) {
    return {reinterpret_cast<Floats>(reinterpret_cast<Ints>(a.v) & *reinterpret_cast<const Ints*>(mask))};
}
#else
constexpr int kLanes = 4, kRows = 4;
struct Lanes {
    float v[kLanes];
};
template <class F> inline Lanes each(F f) {
    Lanes a;
    for (int i = 0; i < kLanes; ++i)
        a.v[i] = f(i);
    return a;
}
inline Lanes load(const float* from) {
    return each([=](int i) { return from[i]; });
}
inline void store(float* to, Lanes a) {
    for (int i = 0; i < kLanes; ++i)
        to[i] = a.v[i];
}
inline Lanes all(float a) {
    return each([=](int) { return a; });
}
inline Lanes operator+(Lanes a, Lanes b) {
    return each([=](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return each([=](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Lanes masked(Lanes a, const int32_t* mask) {
    return each([=](int i) { return mask[i] ? a.v[i] : 0.0f; });
}
#endif

constexpr int kVectors = 2, kPanel = kVectors * kLanes;
// Numbers of a row that are multiplied before the next rows: a panel of them stays in the first-level cache.
constexpr int64_t kDepth = 256;

// M rows of a (row `row_step`, number `step` apart) times a panel [depth][kPanel].
template <int M> ADVFAST_INLINE void multiply(const float* a, int64_t row_step, int64_t step, const float* panel,
                                              int64_t depth, Lanes (&sums)[M][kVectors]) {
    ADVFAST_UNROLL
    for (int m = 0; m < M; ++m)
        ADVFAST_UNROLL
    for (int v = 0; v < kVectors; ++v)
        sums[m][v] = all(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
        Lanes columns[kVectors];
        ADVFAST_UNROLL
        for (int v = 0; v < kVectors; ++v)
            columns[v] = load(panel + k * kPanel + v * kLanes);
        ADVFAST_UNROLL
        for (int m = 0; m < M; ++m) {
            const Lanes factor = all(a[m * row_step + k * step]);
            ADVFAST_UNROLL
            for (int v = 0; v < kVectors; ++v)
                sums[m][v] = multiply_add(factor, columns[v], sums[m][v]);
        }
    }
}

// What a block of rows does with its M: Body has `template <int M> void rows(int64_t first)`.
template <int M, class Body> ADVFAST_INLINE void choose_rows(int64_t rows, int64_t first, Body& body) {
    if constexpr (M > 0) {
        if (rows == M)
            body.template rows<M>(first);
        else
            choose_rows<M - 1>(rows, first, body);
    }
}
// [begin, end) in blocks of at most kRows, as equal as can be.
template <class Body> ADVFAST_INLINE void in_blocks(int64_t begin, int64_t end, Body& body) {
    const int64_t rows = end - begin, blocks = (rows + kRows - 1) / kRows;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = rows * block / blocks, last = rows * (block + 1) / blocks;
        choose_rows<kRows>(last - first, begin + first, body);
    }
}

// A product whose result is stored: to[row][kPanel columns], added to what is there from the second depth on.
struct Product {
    const float* a;
    int64_t row_step, step;
    const float* panel;
    int64_t depth;
    float* to;
    int64_t to_step;
    bool add;

    template <int M> ADVFAST_INLINE void rows(int64_t first) {
        Lanes sums[M][kVectors];
        multiply<M>(a + first * row_step, row_step, step, panel, depth, sums);
        ADVFAST_UNROLL
        for (int m = 0; m < M; ++m)
            ADVFAST_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            float* at = to + (first + m) * to_step + v * kLanes;
            store(at, add ? load(at) + sums[m][v] : sums[m][v]);
        }
    }
};

} // namespace
} // namespace ADVFAST_ISA
} // namespace advfast

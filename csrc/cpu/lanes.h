// Groups of values for the activations, and their bits. Compiled once for each instruction set (see isa.h).
//
// Compilers turn neither comparisons into bits nor bits into masks by themselves, hence the intrinsics. Their header
// has no function that could be linked from the wrong instruction set: all are inlined always.
#pragma once

#include "isa.h"

#include "../common.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// kLanes values, and Mask, the bits of them: where a ReLU lets the gradient through.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
typedef uint16_t Mask;
struct Lanes {
    __m512 v;
};
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.v); }
inline Lanes load(const bf16* from) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, words), 16))};
}
inline Lanes load(const f16* from) {
    return {_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline void store(bf16* to, Lanes a) {
    const __m512i bits = _mm512_castps_si512(a.v), high = _mm512_maskz_srli_epi32(0xffff, bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i rounded = _mm512_maskz_srli_epi32(0xffff, up, 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(0xffff, words));
}
inline void store(f16* to, Lanes a) {
    const __m256i words = _mm512_maskz_cvtps_ph(0xffff, a.v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
// The second operand where either is NaN, or both are zeros. (Masked, as GCC warns of the plain form's undefined
// lanes.)
inline Lanes relu(Lanes a) { return {_mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), a.v)}; }
inline Mask passes(Lanes a) { return _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NLE_UQ); }
inline Lanes keep(Lanes a, Mask mask) { return {_mm512_maskz_mov_ps(mask, a.v)}; }
#elif defined(__AVX2__)
constexpr int kLanes = 8;
typedef uint8_t Mask;
struct Lanes {
    __m256 v;
};
inline Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline void store(float* to, Lanes a) { _mm256_storeu_ps(to, a.v); }
// As to_float and round_to of common.h: compilers make less of those loops, and AVX2 does not imply F16C.
inline __m256i load_8(const void* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
inline void store_8(void* to, __m256i words) {
    const __m256i packed = _mm256_packus_epi32(words, words);
    const __m256i first = _mm256_permute4x64_epi64(packed, 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_castsi256_si128(first));
}
inline __m256i choose(__m256i condition, __m256i yes, __m256i no) { return _mm256_blendv_epi8(no, yes, condition); }
inline Lanes load(const bf16* from) { return {_mm256_castsi256_ps(_mm256_slli_epi32(load_8(from), 16))}; }
inline Lanes load(const f16* from) {
    const __m256i words = load_8(from), magnitude = _mm256_and_si256(words, _mm256_set1_epi32(0x7fff));
    const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(words, magnitude), 16);
    const __m256i offset = _mm256_set1_epi32(112 << 23);
    const __m256i special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7bff));
    const __m256i normal =
        _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(magnitude, 13), offset), _mm256_and_si256(special, offset));
    const __m256 subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(5.9604644775390625e-8f));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x400), magnitude);
    return {_mm256_castsi256_ps(_mm256_or_si256(choose(small, _mm256_castps_si256(subnormal), normal), sign))};
}
// bits + half of the last place that is kept, less a little where that place is even; then without the rest.
template <int DROPPED> inline __m256i to_nearest_even(__m256i bits) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, DROPPED), _mm256_set1_epi32(1));
    const __m256i half = _mm256_set1_epi32((1 << (DROPPED - 1)) - 1);
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, half), odd), DROPPED);
}
inline void store(bf16* to, Lanes a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    store_8(to, choose(nan, quiet, to_nearest_even<16>(bits)));
}
inline void store(f16* to, Lanes a) {
    const __m256i bits = _mm256_castps_si256(a.v), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i sign = _mm256_srli_epi32(_mm256_xor_si256(bits, magnitude), 16);
    const __m256 moved = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0.5f));
    const __m256i subnormal = _mm256_sub_epi32(_mm256_castps_si256(moved), _mm256_set1_epi32(0x3f000000));
    const __m256i normal = to_nearest_even<13>(_mm256_sub_epi32(magnitude, _mm256_set1_epi32(112 << 23)));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x38800000), magnitude);
    const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    const __m256i special = choose(nan, _mm256_set1_epi32(0x7e00), _mm256_set1_epi32(0x7c00));
    const __m256i large = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x477fffff));
    store_8(to, _mm256_or_si256(choose(large, special, choose(small, subnormal, normal)), sign));
}
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes relu(Lanes a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }
inline Mask passes(Lanes a) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NLE_UQ)));
}
inline Lanes keep(Lanes a, Mask mask) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), own), own);
    return {_mm256_and_ps(a.v, _mm256_castsi256_ps(set))};
}
#else
constexpr int kLanes = 8;
typedef uint8_t Mask;
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
// GCC vectorises these loops unless it has unrolled them before, and then branches for each value.
template <class T> inline Lanes load(const T* from) {
    Lanes a;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 1
#endif
    for (int i = 0; i < kLanes; ++i)
        a.v[i] = to_float(from[i]);
    return a;
}
template <class T> inline void store(T* to, Lanes a) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 1
#endif
    for (int i = 0; i < kLanes; ++i)
        to[i] = round_to<T>(a.v[i]);
}
inline Lanes operator+(Lanes a, Lanes b) {
    return each([=](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return each([=](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes relu(Lanes a) {
    return each([=](int i) { return 0.0f > a.v[i] ? 0.0f : a.v[i]; });
}
inline Mask passes(Lanes a) {
    int mask = 0;
    for (int i = 0; i < kLanes; ++i)
        mask |= !(a.v[i] <= 0.0f) << i;
    return static_cast<Mask>(mask);
}
inline Lanes keep(Lanes a, Mask mask) {
    return each([=](int i) { return mask >> i & 1 ? a.v[i] : 0.0f; });
}
#endif

// kWords values of a 16-bit format as integers, whose order is that of the numbers down to -infinity: above it lie the
// positive numbers, zero and, below zero, the NaNs that have a sign; below it the negative numbers and -0.0.
constexpr int16_t minus_infinity(bf16) { return -128; }
constexpr int16_t minus_infinity(f16) { return -1024; }

#if defined(__AVX512F__)
constexpr int kWords = 32;
typedef uint32_t WordMask;
template <class T> struct Words {
    __m512i v;
};
template <class T> inline Words<T> load_words(const T* from) { return {_mm512_loadu_si512(from)}; }
template <class T> inline void store_words(T* to, Words<T> a) { _mm512_storeu_si512(to, a.v); }
template <class T> inline WordMask above(Words<T> a) {
    return _mm512_cmpgt_epi16_mask(a.v, _mm512_set1_epi16(minus_infinity(T())));
}
template <class T> inline WordMask passes(Words<T> a) { return above(a) & _mm512_test_epi16_mask(a.v, a.v); }
template <class T> inline Words<T> relu(Words<T> a) {
    const WordMask zero = _mm512_cmpeq_epi16_mask(a.v, _mm512_set1_epi16(-0x8000));
    return {_mm512_maskz_mov_epi16(above(a) | zero, a.v)};
}
template <class T> inline Words<T> keep(Words<T> a, WordMask mask) { return {_mm512_maskz_mov_epi16(mask, a.v)}; }
#elif defined(__AVX2__)
constexpr int kWords = 16;
typedef uint16_t WordMask;
template <class T> struct Words {
    __m256i v;
};
template <class T> inline Words<T> load_words(const T* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
}
template <class T> inline void store_words(T* to, Words<T> a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.v);
}
template <class T> inline __m256i above(Words<T> a) {
    return _mm256_cmpgt_epi16(a.v, _mm256_set1_epi16(minus_infinity(T())));
}
template <class T> inline WordMask passes(Words<T> a) {
    const __m256i set = _mm256_andnot_si256(_mm256_cmpeq_epi16(a.v, _mm256_setzero_si256()), above(a));
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(set), _mm256_extracti128_si256(set, 1));
    return static_cast<WordMask>(_mm_movemask_epi8(bytes));
}
template <class T> inline Words<T> relu(Words<T> a) {
    const __m256i zero = _mm256_cmpeq_epi16(a.v, _mm256_set1_epi16(-0x8000));
    return {_mm256_and_si256(a.v, _mm256_or_si256(above(a), zero))};
}
template <class T> inline Words<T> keep(Words<T> a, WordMask mask) {
    const __m256i own =
        _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -0x8000);
    const __m256i bits = _mm256_set1_epi16(static_cast<int16_t>(mask));
    return {_mm256_and_si256(a.v, _mm256_cmpeq_epi16(_mm256_and_si256(bits, own), own))};
}
#else
constexpr int kWords = 8;
typedef uint8_t WordMask;
template <class T> struct Words {
    int16_t v[kWords];
};
template <class T> inline Words<T> load_words(const T* from) {
    Words<T> a;
    for (int i = 0; i < kWords; ++i)
        a.v[i] = static_cast<int16_t>(bits_of(from[i]));
    return a;
}
template <class T> inline void store_words(T* to, Words<T> a) {
    for (int i = 0; i < kWords; ++i)
        to[i] = static_cast<T>(static_cast<uint16_t>(a.v[i]));
}
template <class T> inline WordMask passes(Words<T> a) {
    int mask = 0;
    for (int i = 0; i < kWords; ++i)
        mask |= ((a.v[i] > minus_infinity(T())) & (a.v[i] != 0)) << i;
    return static_cast<WordMask>(mask);
}
template <class T> inline Words<T> relu(Words<T> a) {
    for (int i = 0; i < kWords; ++i)
        a.v[i] = (a.v[i] > minus_infinity(T())) | (a.v[i] == -0x8000) ? a.v[i] : int16_t(0);
    return a;
}
template <class T> inline Words<T> keep(Words<T> a, WordMask mask) {
    for (int i = 0; i < kWords; ++i)
        a.v[i] = mask >> i & 1 ? a.v[i] : int16_t(0);
    return a;
}
#endif

template <class M> inline M load_mask(const uint8_t* from) {
    M mask = 0;
    for (unsigned i = 0; i < sizeof(M); ++i)
        mask = static_cast<M>(mask | static_cast<M>(from[i]) << 8 * i);
    return mask;
}
template <class M> inline void store_mask(uint8_t* to, M mask) {
    for (unsigned i = 0; i < sizeof(M); ++i)
        to[i] = static_cast<uint8_t>(mask >> 8 * i);
}

} // namespace
} // namespace ADVFAST_ISA
} // namespace advfast

// Number formats and Philox, for host and device. No standard headers with inline code: this file is compiled once for
// each instruction set, and a shared inline function could be linked from the wrong one.
#pragma once

#include "advfast.h"

#if defined(__CUDACC__)
#define ADVFAST_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define ADVFAST_HD inline __attribute__((always_inline))
#else
#define ADVFAST_HD __forceinline
#endif

namespace advfast {

// Enumerations and not structs: compilers vectorise loops over scalars alone.
enum class f16 : uint16_t {};
enum class bf16 : uint16_t {};
ADVFAST_HD uint16_t bits_of(f16 v) { return static_cast<uint16_t>(v); }
ADVFAST_HD uint16_t bits_of(bf16 v) { return static_cast<uint16_t>(v); }

template <class To, class From> ADVFAST_HD To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    union {
        From from;
        To to;
    } u;
    u.from = from;
    return u.to;
}

// --- widening -------------------------------------------------------------------------------------------------------

ADVFAST_HD float to_float(float v) { return v; }
ADVFAST_HD float to_float(double v) { return static_cast<float>(v); }
ADVFAST_HD float to_float(bf16 v) { return bit_cast<float>(static_cast<uint32_t>(bits_of(v)) << 16); }
ADVFAST_HD float to_float(f16 v) {
    const uint32_t sign = static_cast<uint32_t>(bits_of(v) & 0x8000u) << 16;
    const uint32_t exponent = (bits_of(v) >> 10) & 31u, mantissa = bits_of(v) & 1023u;
    // Through an integer, not a multiplication of a subnormal: right also where the caller flushes denormals.
    const float subnormal = static_cast<float>(static_cast<int32_t>(mantissa)) * 5.9604644775390625e-8f; // 2^-24
    const uint32_t normal = ((exponent == 31u ? 255u : exponent + 112u) << 23) | (mantissa << 13);
    return bit_cast<float>((exponent == 0 ? bit_cast<uint32_t>(subnormal) : normal) | sign);
}
ADVFAST_HD double to_double(double v) { return v; }
template <class G> ADVFAST_HD double to_double(G v) { return static_cast<double>(to_float(v)); }

template <class T> ADVFAST_HD bool is_finite(T v) { return v - v == T(0); }
ADVFAST_HD bool is_finite(f16 v) { return (bits_of(v) & 0x7c00u) != 0x7c00u; }
ADVFAST_HD bool is_finite(bf16 v) { return (bits_of(v) & 0x7f80u) != 0x7f80u; }

// --- narrowing, to nearest even -------------------------------------------------------------------------------------

template <class O> ADVFAST_HD O round_to(float v);
template <> ADVFAST_HD float round_to<float>(float v) { return v; }
template <> ADVFAST_HD double round_to<double>(float v) { return v; }
template <> ADVFAST_HD bf16 round_to<bf16>(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    // Not the constant 0x7fc0 for NaN: the compiler would make that a branch, and loops would not vectorise.
    return bf16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded)};
}
template <> ADVFAST_HD f16 round_to<f16>(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v), magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the sum with 0.5 leaves the rounded subnormal in the low mantissa bits.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t value = magnitude >= 0x47800000u ? special : (magnitude < 0x38800000u ? subnormal : normal);
    return f16{static_cast<uint16_t>(value | ((bits >> 16) & 0x8000u))};
}
// A double goes through float, as torch's conversion does.
template <class O> ADVFAST_HD O round_to(double v) { return round_to<O>(static_cast<float>(v)); }
template <> ADVFAST_HD double round_to<double>(double v) { return v; }

// --- one step to the neighbouring number ----------------------------------------------------------------------------

// Neighbour of v toward +inf (up) or -inf, for finite v of any sign-magnitude format held in the integer I.
template <class I> ADVFAST_HD I neighbour_bits(I bits, bool up) {
    const I top = static_cast<I>(I(1) << (sizeof(I) * 8 - 1));
    const bool negative = (bits & top) != 0;
    const bool zero = (bits & static_cast<I>(~top)) == 0;
    const I away = static_cast<I>(bits + 1), back = static_cast<I>(bits - 1);
    const I smallest = up ? I(1) : static_cast<I>(top | I(1));
    return zero ? smallest : (negative == up ? back : away);
}
ADVFAST_HD float neighbour_of_nonzero(float v, bool up) {
    const int32_t bits = bit_cast<int32_t>(v);
    return bit_cast<float>(bits + ((bits < 0) == up ? -1 : 1));
}
ADVFAST_HD double neighbour_of_nonzero(double v, bool up) {
    const int64_t bits = bit_cast<int64_t>(v);
    return bit_cast<double>(bits + ((bits < 0) == up ? -1 : 1));
}
ADVFAST_HD float neighbour(float v, bool up) {
    return bit_cast<float>(neighbour_bits<uint32_t>(bit_cast<uint32_t>(v), up));
}
ADVFAST_HD double neighbour(double v, bool up) {
    return bit_cast<double>(neighbour_bits<uint64_t>(bit_cast<uint64_t>(v), up));
}
ADVFAST_HD f16 neighbour(f16 v, bool up) { return f16{neighbour_bits<uint16_t>(bits_of(v), up)}; }
ADVFAST_HD bf16 neighbour(bf16 v, bool up) { return bf16{neighbour_bits<uint16_t>(bits_of(v), up)}; }

// --- Philox4x32-10 (Salmon et al., SC'11) ---------------------------------------------------------------------------

struct Words {
    uint32_t w[4];
};

ADVFAST_HD uint32_t mul_hi(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

ADVFAST_HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#if !defined(__CUDACC__)
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
#endif
    for (int round = 0; round < 10; ++round) {
        const uint32_t hi0 = mul_hi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
        const uint32_t hi1 = mul_hi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ k0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ k1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

} // namespace advfast

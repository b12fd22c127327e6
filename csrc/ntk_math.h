// Rounding of the operands of the ntk family, the same code on CPU and GPU, so that CPU tests cover both.
#pragma once

#include "common.h"

namespace advfast {

// To a 10-bit mantissa, ties to even: a matrix instruction cuts the other bits off, which shrinks every product.
// Infinities and NaN stay; a magnitude past the largest such number becomes infinite.
ADVFAST_HD float round_tf32(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    const uint32_t rounded = (bits + 0x0fffu + ((bits >> 13) & 1u)) & ~0x1fffu;
    return bit_cast<float>((bits & 0x7f800000u) == 0x7f800000u ? bits : rounded);
}

// To the nearest bfloat16, ties to even, as float.
ADVFAST_HD float round_bf16(float v) { return to_float(round_to<bf16>(v)); }

// An operand of a product in this precision. bf16x3 splits it later instead.
template <Precision P> ADVFAST_HD float rounded(float v) {
    return P == Precision::tf32 ? round_tf32(v) : P == Precision::bf16 ? round_bf16(v) : v;
}

// Two numbers that bfloat16 holds, the first in the low half.
ADVFAST_HD uint32_t pack_bf16(float low, float high) {
    return (bit_cast<uint32_t>(low) >> 16) | (bit_cast<uint32_t>(high) & 0xffff0000u);
}

} // namespace advfast

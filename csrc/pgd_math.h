// Per-element maths of the pgd family, the same code on CPU and GPU, so that CPU tests cover both.
// Built without floating-point contraction: the linf results are bit-equal on every implementation.
#pragma once

#include "common.h"

namespace advfast {

// Like torch.clamp on finite bounds: NaN passes through, -0.0 is kept.
template <class T> ADVFAST_HD T clamp(T v, T lo, T hi) {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

// clamp(x0 + clamp(x + alpha * sign - x0, -eps, eps), lo, hi), in this order of operations.
template <class T> ADVFAST_HD T linf_step(T x, T x0, T sign, T alpha, T eps, T lo, T hi) {
    const T moved = x + alpha * sign;
    return clamp(x0 + clamp(moved - x0, -eps, eps), lo, hi);
}

// An entry that must not move (masked, non-finite gradient, project_): kept bit for bit inside the ball and the box.
template <class T> ADVFAST_HD T linf_hold(T x, T x0, T eps, T lo, T hi) {
    return clamp(clamp(x, x0 - eps, x0 + eps), lo, hi);
}

// The sign of a gradient entry as a T; sign(0) = 0. In the gradient's own format: a small double would vanish in float.
template <class T> ADVFAST_HD T sign_as(float g) { return T(g > 0.0f) - T(g < 0.0f); }
template <class T> ADVFAST_HD T sign_as(double g) { return T(g > 0.0) - T(g < 0.0); }
template <class T> ADVFAST_HD T sign_of_bits(uint16_t bits) {
    const T magnitude = (bits & 0x7fffu) != 0 ? T(1) : T(0);
    return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}
template <class T> ADVFAST_HD T sign_as(f16 g) { return sign_of_bits<T>(bits_of(g)); }
template <class T> ADVFAST_HD T sign_as(bf16 g) { return sign_of_bits<T>(bits_of(g)); }

// Below it numbers lose their relative precision.
ADVFAST_HD float smallest_normal(float) { return 1.17549435e-38f; }
ADVFAST_HD double smallest_normal(double) { return 2.2250738585072014e-308; }

// x0 + delta, rounded to nearest unless that is farther from x0 than delta: then toward x0. So the norm of the stored
// perturbation never exceeds the norm of delta, whatever the size of x0. A subnormal delta counts as 0: its own
// rounding may already have lengthened it.
template <class T> ADVFAST_HD T add_within(T x0, T delta) {
    const T length = delta < T(0) ? -delta : delta, limit = length < smallest_normal(T(0)) ? T(0) : length;
    const T z = x0 + (limit == T(0) ? T(0) : delta);
    const T moved = z - x0;
    const T far = moved < T(0) ? -moved : moved;
    // A sum that rounds to 0 is exact, so z is not 0 where it is replaced.
    return far > limit ? neighbour_of_nonzero(z, moved < T(0)) : z;
}

// What the formats are compared in: float holds every number of the 16-bit formats.
ADVFAST_HD float widen(f16 v) { return to_float(v); }
ADVFAST_HD float widen(bf16 v) { return to_float(v); }
ADVFAST_HD float widen(float v) { return v; }
ADVFAST_HD double widen(double v) { return v; }

// x as the format O, between x0 and x: the distance to x0 never grows. If no number of the format lies between them
// (x0 is not of the format O), the nearest.
template <class O, class T> ADVFAST_HD O round_toward(T x, T x0) {
    const O nearest = round_to<O>(x);
    const bool above = x >= x0;
    const O inner = neighbour(nearest, !above);
    const auto value = widen(nearest), next = widen(inner);
    // & and |, without branches: loops over this vectorise.
    const bool outside = ((value > x) & above) | ((value < x) & !above);
    const bool crosses = ((next < x0) & above) | ((next > x0) & !above);
    return (outside & !crosses) ? inner : nearest;
}

// Uniform in (-1, 1): odd multiples of 2^-24, exact in float32.
ADVFAST_HD float symmetric_uniform(uint32_t word) {
    return static_cast<float>(2 * static_cast<int32_t>(word >> 8) + 1 - (1 << 24)) * 5.9604644775390625e-8f;
}
// Uniform in (0, 1): odd multiples of 2^-24, exact in float32.
ADVFAST_HD float open_uniform(uint32_t word) {
    return static_cast<float>(2 * static_cast<int32_t>(word >> 9) + 1) * 5.9604644775390625e-8f;
}

template <class T> ADVFAST_HD T linf_start(T x0, uint32_t word, T eps, T lo, T hi) {
    return clamp(x0 + static_cast<T>(symmetric_uniform(word)) * eps, lo, hi);
}

// Counter of the words of one sample: element block (four logical NCHW elements) or kSampleBlock, stream, sample id.
constexpr uint32_t kSampleBlock = 0xFFFFFFFFu;
ADVFAST_HD Words start_words(uint32_t block, uint32_t offset, int64_t sample_id, int64_t seed) {
    const uint64_t id = static_cast<uint64_t>(sample_id), key = static_cast<uint64_t>(seed);
    return philox(block, offset, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), static_cast<uint32_t>(key),
                  static_cast<uint32_t>(key >> 32));
}

} // namespace advfast

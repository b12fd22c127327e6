// ReLU with one bit a value, and its backward pass. Compiled once for each instruction set (see isa.h).
//
// Compilers turn neither comparisons into bits nor bits into masks by themselves, hence the intrinsics. Their header
// has no function that could be linked from the wrong instruction set: all are inlined always.

#include "isa.h"

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

inline Mask load_mask(const uint8_t* from) {
    Mask mask = 0;
    for (unsigned i = 0; i < sizeof(Mask); ++i)
        mask = static_cast<Mask>(mask | from[i] << 8 * i);
    return mask;
}
inline void store_mask(uint8_t* to, Mask mask) {
    for (unsigned i = 0; i < sizeof(Mask); ++i)
        to[i] = static_cast<uint8_t>(mask >> 8 * i);
}

// A piece of the operands: n values from a chunk's beginning on; scale and shift of each value.
struct Piece {
    const float *x, *other, *scale, *shift;
    float* y;
    uint8_t* bits;
    int64_t n;
};

template <bool OTHER, bool AFFINE, bool WRITES> inline void forward(const Piece& p, int64_t i) {
    Lanes v = load(p.x + i);
    if (AFFINE)
        v = v * load(p.scale + i) + load(p.shift + i);
    if (OTHER)
        v = v + load(p.other + i);
    store_mask(p.bits + i / 8, passes(v));
    if (WRITES)
        store(p.y + i, relu(v));
}
template <bool OTHER, bool AFFINE> inline void backward(const Piece& p, int64_t i) {
    Lanes v = load(p.x + i);
    const Mask mask = load_mask(p.bits + i / 8);
    if (AFFINE) {
        v = keep(v, mask) * load(p.scale + i);
        if (OTHER)
            v = v + load(p.other + i);
    } else {
        if (OTHER)
            v = v + load(p.other + i);
        v = keep(v, mask);
    }
    store(p.y + i, v);
}

// What is left behind the last whole group, by way of memory that has room for one.
template <class F> inline void last_group(const Piece& p, int64_t start, F f) {
    float x[kLanes] = {}, other[kLanes] = {}, scale[kLanes] = {}, shift[kLanes] = {}, y[kLanes];
    uint8_t bits[sizeof(Mask)] = {};
    const int64_t left = p.n - start, bytes = (left + 7) / 8;
    for (int64_t i = 0; i < left; ++i) {
        x[i] = p.x[start + i];
        other[i] = p.other ? p.other[start + i] : 0.0f;
        scale[i] = p.scale ? p.scale[start + i] : 0.0f;
        shift[i] = p.shift ? p.shift[start + i] : 0.0f;
    }
    for (int64_t i = 0; i < bytes; ++i)
        bits[i] = p.bits[start / 8 + i];
    f(Piece{x, other, scale, shift, y, bits, left}, 0);
    for (int64_t i = 0; i < bytes; ++i)
        p.bits[start / 8 + i] = bits[i];
    for (int64_t i = 0; p.y && i < left; ++i)
        p.y[start + i] = y[i];
}

template <class F> inline void groups(const Piece& p, F f) {
    int64_t i = 0;
    for (; i + kLanes <= p.n; i += kLanes)
        f(p, i);
    if (i < p.n)
        last_group(p, i, f);
}

// Each value's channel's number, for n values from `start` on.
void spread(const ActivationArgs& args, const float* of_channel, int64_t start, int64_t n, float* to) {
    const bool alternate = args.layout == Layout::nhwc || args.spatial == 1;
    const int64_t run = alternate ? args.channels : args.spatial;
    int64_t at = start % run, channel = start / run % args.channels;
    for (int64_t i = 0; i < n;) {
        const int64_t count = run - at < n - i ? run - at : n - i;
        if (alternate)
            for (int64_t j = 0; j < count; ++j)
                to[i + j] = of_channel[at + j];
        else
            for (int64_t j = 0; j < count; ++j)
                to[i + j] = of_channel[channel];
        i += count;
        at = 0;
        channel = channel + 1 == args.channels ? 0 : channel + 1;
    }
}

template <class F> void in_chunks(const ActivationArgs& args, Range chunks, F f) {
    float scale[kChunk], shift[kChunk];
    for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        const int64_t start = chunk * kChunk, left = args.values - start;
        const int64_t n = left < kChunk ? left : kChunk;
        Piece piece{args.x + start,
                    args.other ? args.other + start : nullptr,
                    nullptr,
                    nullptr,
                    args.y ? args.y + start : nullptr,
                    args.bits + start / 8,
                    n};
        if (args.scale) {
            spread(args, args.scale, start, n, scale);
            piece.scale = scale;
        }
        if (args.shift) {
            spread(args, args.shift, start, n, shift);
            piece.shift = shift;
        }
        groups(piece, f);
    }
}

} // namespace

void relu_bits(const ActivationArgs& args, Range chunks) {
    if (args.scale && args.other)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { forward<true, true, true>(p, i); });
    else if (args.scale)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { forward<false, true, true>(p, i); });
    else if (args.other)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { forward<true, false, true>(p, i); });
    else if (args.y)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { forward<false, false, true>(p, i); });
    else
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { forward<false, false, false>(p, i); });
}

void gate(const ActivationArgs& args, Range chunks) {
    if (args.scale && args.other)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { backward<true, true>(p, i); });
    else if (args.scale)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { backward<false, true>(p, i); });
    else if (args.other)
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { backward<true, false>(p, i); });
    else
        in_chunks(args, chunks, [](const Piece& p, int64_t i) { backward<false, false>(p, i); });
}

} // namespace ADVFAST_ISA
} // namespace advfast

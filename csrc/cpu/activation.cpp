// ReLU with one bit a value, and its backward pass. Compiled once for each instruction set (see isa.h).
//
// 16-bit values are computed in float32 and rounded once, over a chunk that lies in the first-level cache. The rest,
// bits and zeros, is done on the integers that they are.

#include "lanes.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// A piece of the operands: n values from a chunk's beginning on; scale and shift of each value.
template <class T> struct Piece {
    const T *x, *other;
    const float *scale, *shift;
    T* y;
    uint8_t* bits;
    int64_t n;
};

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

// Calls f with the piece of each chunk.
template <class T, class F> void in_chunks(const ActivationArgs& args, Range chunks, F f) {
    const T *x = static_cast<const T*>(args.x), *other = static_cast<const T*>(args.other);
    T* y = static_cast<T*>(args.y);
    float scale[kChunk], shift[kChunk];
    for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
        const int64_t start = chunk * kChunk, left = args.values - start;
        const int64_t n = left < kChunk ? left : kChunk;
        Piece<T> piece{x + start, nullptr, nullptr, nullptr, nullptr, args.bits + start / 8, n};
        if (other)
            piece.other = other + start;
        if (y)
            piece.y = y + start;
        if (args.scale) {
            spread(args, args.scale, start, n, scale);
            piece.scale = scale;
        }
        if (args.shift) {
            spread(args, args.shift, start, n, shift);
            piece.shift = shift;
        }
        f(piece);
    }
}

// --- float32 ---------------------------------------------------------------------------------------------------------

template <bool OTHER, bool AFFINE, bool WRITES> inline void forward(const Piece<float>& p, int64_t i) {
    Lanes v = load(p.x + i);
    if (AFFINE)
        v = v * load(p.scale + i) + load(p.shift + i);
    if (OTHER)
        v = v + load(p.other + i);
    store_mask(p.bits + i / 8, passes(v));
    if (WRITES)
        store(p.y + i, relu(v));
}
template <bool OTHER, bool AFFINE> inline void backward(const Piece<float>& p, int64_t i) {
    Lanes v = load(p.x + i);
    const Mask mask = load_mask<Mask>(p.bits + i / 8);
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
template <class F> inline void last_group(const Piece<float>& p, int64_t start, F f) {
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
    f(Piece<float>{x, other, scale, shift, y, bits, left}, 0);
    for (int64_t i = 0; i < bytes; ++i)
        p.bits[start / 8 + i] = bits[i];
    for (int64_t i = 0; p.y && i < left; ++i)
        p.y[start + i] = y[i];
}

template <class F> inline void groups(const Piece<float>& p, F f) {
    int64_t i = 0;
    for (; i + kLanes <= p.n; i += kLanes)
        f(p, i);
    if (i < p.n)
        last_group(p, i, f);
}

template <class F> void grouped(const ActivationArgs& args, Range chunks, F f) {
    in_chunks<float>(args, chunks, [=](const Piece<float>& p) { groups(p, f); });
}

void relu_bits_f32(const ActivationArgs& args, Range chunks) {
    typedef const Piece<float>& P;
    if (args.scale && args.other)
        grouped(args, chunks, [](P p, int64_t i) { forward<true, true, true>(p, i); });
    else if (args.scale)
        grouped(args, chunks, [](P p, int64_t i) { forward<false, true, true>(p, i); });
    else if (args.other)
        grouped(args, chunks, [](P p, int64_t i) { forward<true, false, true>(p, i); });
    else if (args.y)
        grouped(args, chunks, [](P p, int64_t i) { forward<false, false, true>(p, i); });
    else
        grouped(args, chunks, [](P p, int64_t i) { forward<false, false, false>(p, i); });
}

void gate_f32(const ActivationArgs& args, Range chunks) {
    typedef const Piece<float>& P;
    if (args.scale && args.other)
        grouped(args, chunks, [](P p, int64_t i) { backward<true, true>(p, i); });
    else if (args.scale)
        grouped(args, chunks, [](P p, int64_t i) { backward<false, true>(p, i); });
    else if (args.other)
        grouped(args, chunks, [](P p, int64_t i) { backward<true, false>(p, i); });
    else
        grouped(args, chunks, [](P p, int64_t i) { backward<false, false>(p, i); });
}

// --- 16 bits ---------------------------------------------------------------------------------------------------------

// Calls f(x, y, bits, n) for groups of kWords values; what is left behind the last whole one goes by way of memory that
// has room for one. x may be y; y may be null.
template <class T, class F> inline void word_groups(const T* x, T* y, uint8_t* bits, int64_t n, F f) {
    int64_t i = 0;
    for (; i + kWords <= n; i += kWords)
        f(x + i, y ? y + i : nullptr, bits + i / 8);
    if (i == n)
        return;
    T from[kWords] = {}, to[kWords];
    uint8_t few[sizeof(WordMask)] = {};
    const int64_t left = n - i, bytes = (left + 7) / 8;
    for (int64_t j = 0; j < left; ++j)
        from[j] = x[i + j];
    for (int64_t j = 0; j < bytes; ++j)
        few[j] = bits[i / 8 + j];
    f(from, to, few);
    for (int64_t j = 0; j < bytes; ++j)
        bits[i / 8 + j] = few[j];
    for (int64_t j = 0; y && j < left; ++j)
        y[i + j] = to[j];
}

template <class T> void relu_words(const T* x, T* y, uint8_t* bits, int64_t n) {
    if (y)
        word_groups(x, y, bits, n, [](const T* from, T* to, uint8_t* byte) {
            const Words<T> v = load_words(from);
            store_mask(byte, passes(v));
            store_words(to, relu(v));
        });
    else
        word_groups(x, y, bits, n,
                    [](const T* from, T*, uint8_t* byte) { store_mask(byte, passes(load_words(from))); });
}
template <class T> void gate_words(const T* x, T* y, uint8_t* bits, int64_t n) {
    word_groups(x, y, bits, n, [](const T* from, T* to, const uint8_t* byte) {
        store_words(to, keep(load_words(from), load_mask<WordMask>(byte)));
    });
}

// y = relu(x * scale + shift + other), as far as there are those. The ReLU comes before the rounding, as a negative
// number may round to -0.0; the bits belong behind it.
template <bool OTHER, bool AFFINE, class T> void combine_forward(const Piece<T>& p) {
    int64_t i = 0;
    for (; i + kLanes <= p.n; i += kLanes) {
        Lanes v = load(p.x + i);
        if (AFFINE)
            v = v * load(p.scale + i) + load(p.shift + i);
        if (OTHER)
            v = v + load(p.other + i);
        store(p.y + i, relu(v));
    }
    for (; i < p.n; ++i) {
        float v = to_float(p.x[i]);
        if (AFFINE)
            v = v * p.scale[i] + p.shift[i];
        if (OTHER)
            v = v + to_float(p.other[i]);
        p.y[i] = round_to<T>(v < 0.0f ? 0.0f : v);
    }
}
// y = (bit ? x : 0) * scale + other, or bit ? x + other : 0.
template <bool OTHER, bool AFFINE, class T> void combine_backward(const Piece<T>& p) {
    int64_t i = 0;
    for (; i + kLanes <= p.n; i += kLanes) {
        Lanes v = load(p.x + i);
        const Mask mask = load_mask<Mask>(p.bits + i / 8);
        if (AFFINE)
            v = keep(v, mask) * load(p.scale + i);
        if (OTHER)
            v = v + load(p.other + i);
        store(p.y + i, AFFINE ? v : keep(v, mask));
    }
    for (; i < p.n; ++i) {
        const bool passes = p.bits[i / 8] >> i % 8 & 1;
        float v = to_float(p.x[i]);
        if (AFFINE)
            v = (passes ? v : 0.0f) * p.scale[i];
        if (OTHER)
            v = v + to_float(p.other[i]);
        p.y[i] = round_to<T>(AFFINE || passes ? v : 0.0f);
    }
}

template <class T> void relu_bits_16(const ActivationArgs& args, Range chunks) {
    in_chunks<T>(args, chunks, [](const Piece<T>& p) {
        if (!p.scale && !p.other) {
            relu_words(p.x, p.y, p.bits, p.n);
            return;
        }
        if (p.scale && p.other)
            combine_forward<true, true>(p);
        else if (p.scale)
            combine_forward<false, true>(p);
        else
            combine_forward<true, false>(p);
        relu_words<T>(p.y, nullptr, p.bits, p.n);
    });
}

template <class T> void gate_16(const ActivationArgs& args, Range chunks) {
    in_chunks<T>(args, chunks, [](const Piece<T>& p) {
        if (p.scale && p.other)
            combine_backward<true, true>(p);
        else if (p.scale)
            combine_backward<false, true>(p);
        else if (p.other)
            combine_backward<true, false>(p);
        else
            gate_words(p.x, p.y, p.bits, p.n);
    });
}

} // namespace

void relu_bits(const ActivationArgs& args, Range chunks) {
    if (args.dtype == DType::bf16)
        relu_bits_16<bf16>(args, chunks);
    else if (args.dtype == DType::f16)
        relu_bits_16<f16>(args, chunks);
    else
        relu_bits_f32(args, chunks);
}

void gate(const ActivationArgs& args, Range chunks) {
    if (args.dtype == DType::bf16)
        gate_16<bf16>(args, chunks);
    else if (args.dtype == DType::f16)
        gate_16<f16>(args, chunks);
    else
        gate_f32(args, chunks);
}

} // namespace ADVFAST_ISA
} // namespace advfast

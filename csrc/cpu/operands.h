// Operands of a chunk of values. Compiled once for each instruction set (see isa.h): nothing may be shared between
// those, so there are no standard containers and everything has internal linkage.
#pragma once

#include "isa.h"

#include "../common.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

template <class T> struct Types {};

// Sums over a sample are taken in double, in kLanes interleaved partial sums: the same on every instruction set.
template <class F> double sum_of(int64_t n, F term) {
    constexpr int kLanes = 16;
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane)
            lanes[lane] += term(i + lane);
    for (int lane = 0; i < n; ++i, ++lane)
        lanes[lane] += term(i);
    double sum = 0;
    for (double lane : lanes)
        sum += lane;
    return sum;
}

// Calls f(Types<T>{}) with the C++ type of a dtype tag.
template <class F> void with_dtype(DType dtype, F f) {
    switch (dtype) {
    case DType::f32:
        return f(Types<float>{});
    case DType::f64:
        return f(Types<double>{});
    case DType::f16:
        return f(Types<f16>{});
    case DType::bf16:
        return f(Types<bf16>{});
    }
}

struct Shape {
    int64_t channels, spatial;
    Layout layout;
    int64_t dim() const { return channels * spatial; }
    int64_t channel_of(int64_t i) const { return layout == Layout::nchw ? i / spatial : i % channels; }
};

// The values of an operand over [start, start + n) of one sample: one number, or one per element.
template <class T> struct Values {
    T buffer[kChunk];
    const T* each; // null: `one` everywhere
    T one;

    void load(const Operand& op, const Shape& shape, int64_t sample, int64_t start, int64_t n) {
        const T* data = static_cast<const T*>(op.data);
        each = nullptr;
        switch (op.mode) {
        case Mode::value:
            one = static_cast<T>(op.value);
            return;
        case Mode::scalar:
            one = data[0];
            return;
        case Mode::sample:
            one = data[sample];
            return;
        case Mode::full:
            each = data + sample * shape.dim() + start;
            return;
        case Mode::channel:
            break;
        }
        int64_t channel = shape.channel_of(start);
        if (shape.layout == Layout::nchw) {
            int64_t left = shape.spatial - start % shape.spatial;
            if (left >= n) {
                one = data[channel];
                return;
            }
            for (int64_t i = 0; i < n; ++i) {
                if (left == 0) {
                    ++channel;
                    left = shape.spatial;
                }
                buffer[i] = data[channel];
                --left;
            }
        } else {
            for (int64_t i = 0; i < n; ++i) {
                buffer[i] = data[channel];
                channel = channel + 1 == shape.channels ? 0 : channel + 1;
            }
        }
        each = buffer;
    }

    // One value per element even where it is the same everywhere.
    const T* expanded(int64_t n) {
        if (!each) {
            for (int64_t i = 0; i < n; ++i)
                buffer[i] = one;
            each = buffer;
        }
        return each;
    }
};

} // namespace
} // namespace ADVFAST_ISA
} // namespace advfast

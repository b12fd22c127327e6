// The window of a query of the linf Square attack. Compiled once for each instruction set (see isa.h).

#include "isa.h"

#include "../pgd_math.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// Rows and columns of a sample's window that lie in the image.
struct Window {
    int64_t top, bottom, left, right;

    Window(const SquareArgs& args, int64_t sample)
        : top(args.places[2 * sample]), bottom(top + args.window_h), left(args.places[2 * sample + 1]),
          right(left + args.window_w) {
        top = top < 0 ? 0 : top, left = left < 0 ? 0 : left;
        bottom = bottom > args.height ? args.height : bottom, right = right > args.width ? args.width : right;
    }
};

// Calls f(first value, values, channel or -1) for the stretches of memory that a window is made of; -1: the values are
// of all channels in turn.
template <class F> void stretches(const SquareArgs& args, const Window& window, F f) {
    if (window.left >= window.right)
        return;
    const int64_t columns = window.right - window.left;
    if (args.layout == Layout::nhwc) {
        for (int64_t row = window.top; row < window.bottom; ++row)
            f((row * args.width + window.left) * args.channels, columns * args.channels, int64_t(-1));
        return;
    }
    for (int64_t channel = 0; channel < args.channels; ++channel)
        for (int64_t row = window.top; row < window.bottom; ++row)
            f((channel * args.height + row) * args.width + window.left, columns, channel);
}

template <class T> void window_of(const SquareArgs& args, int64_t sample) {
    const int64_t dim = args.channels * args.height * args.width;
    const T* best = static_cast<const T*>(args.best) + sample * dim;
    const T* x0 = static_cast<const T*>(args.other) + sample * dim;
    const T* signs = static_cast<const T*>(args.signs) + sample * args.channels;
    T* out = static_cast<T*>(args.out) + sample * dim;
    const T eps = static_cast<T>(args.eps), step = static_cast<T>(2 * args.eps);
    for (int64_t i = 0; i < dim; ++i)
        out[i] = best[i];
    stretches(args, Window(args, sample), [&](int64_t first, int64_t count, int64_t channel) {
        for (int64_t i = 0; i < count; ++i) {
            const T sign = signs[channel < 0 ? i % args.channels : channel], centre = x0[first + i];
            const T moved = clamp(best[first + i] + step * sign, centre - eps, centre + eps);
            out[first + i] = clamp(moved, T(0), T(1));
        }
    });
}

template <class T> void accept_of(const SquareArgs& args, int64_t sample) {
    if (!args.improved[sample])
        return;
    const int64_t dim = args.channels * args.height * args.width;
    const T* candidate = static_cast<const T*>(args.other) + sample * dim;
    T* out = static_cast<T*>(args.out) + sample * dim;
    stretches(args, Window(args, sample), [&](int64_t first, int64_t count, int64_t) {
        for (int64_t i = 0; i < count; ++i)
            out[first + i] = candidate[first + i];
    });
}

} // namespace

void square_window(const SquareArgs& args, Range samples) {
    for (int64_t sample = samples.begin; sample < samples.end; ++sample)
        args.dtype == DType::f64 ? window_of<double>(args, sample) : window_of<float>(args, sample);
}

void square_accept(const SquareArgs& args, Range samples) {
    for (int64_t sample = samples.begin; sample < samples.end; ++sample)
        args.dtype == DType::f64 ? accept_of<double>(args, sample) : accept_of<float>(args, sample);
}

} // namespace ADVFAST_ISA
} // namespace advfast

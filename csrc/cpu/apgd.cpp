// The steps of Auto-PGD on the CPU: see advfast/kernels/apgd/reference.py. Compiled once for each instruction set (see
// isa.h). A sample goes through its few loops while it lies in the cache.

#include "operands.h"

#include <math.h>
#include <string.h>

namespace advfast {
namespace ADVFAST_ISA {
namespace {

constexpr double kTiny = 1e-12; // added to the norms that are divided by

constexpr int kLanes = 16; // of interleaved partial sums

template <class T> T between(T v, T low, T high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}
template <class T> T sign_of(T v) { return static_cast<T>(v > 0) - static_cast<T>(v < 0); }

// --- linf and l2 -----------------------------------------------------------------------------------------------------

template <class T> struct Sample {
    const T *x, *x0, *grad;
    T* previous; // read, and overwritten with the next iterate
    int64_t dim;
    T step, eps, keep, carry; // carry: of the last step; keep: of this one
    bool carries;

    T mixed(int64_t i, T z) const {
        const T moved = x[i] + (z - x[i]) * keep;
        return moved + (x[i] - previous[i]) * carry;
    }
};

// Clamped to the cube, then to the box.
template <class T> T in_cube(T v, T x0, T eps) { return between(between(v, x0 - eps, x0 + eps), T(0), T(1)); }

template <class T> void linf(const Sample<T>& s) {
    if (s.carries) {
        for (int64_t i = 0; i < s.dim; ++i) {
            const T z = in_cube(s.x[i] + s.step * sign_of(s.grad[i]), s.x0[i], s.eps);
            s.previous[i] = in_cube(s.mixed(i, z), s.x0[i], s.eps);
        }
    } else {
        for (int64_t i = 0; i < s.dim; ++i) {
            const T z = in_cube(s.x[i] + s.step * sign_of(s.grad[i]), s.x0[i], s.eps);
            s.previous[i] = in_cube(s.x[i] + (z - s.x[i]) * s.keep, s.x0[i], s.eps);
        }
    }
}

// What x - x0 is multiplied by to come into the ball.
template <class T> T shrinkage(double squares, T eps) {
    const double size = sqrt(squares);
    return static_cast<T>((size < static_cast<double>(eps) ? size : static_cast<double>(eps)) / (size + kTiny));
}

template <class T> void l2(const Sample<T>& s) {
    const double norm = sqrt(sum_of(s.dim, [&](int64_t i) { return static_cast<double>(s.grad[i]) * s.grad[i]; }));
    const T divisor = static_cast<T>(norm + kTiny), step = s.step;
    const auto moved = [&](int64_t i) { return s.x[i] + step * (s.grad[i] / divisor) - s.x0[i]; };
    const T first = shrinkage(sum_of(s.dim,
                                     [&](int64_t i) {
                                         const double d = static_cast<double>(moved(i));
                                         return d * d;
                                     }),
                              s.eps);
    for (int64_t i = 0; i < s.dim; ++i) {
        const T z = between(s.x0[i] + moved(i) * first, T(0), T(1));
        s.previous[i] = s.carries ? s.mixed(i, z) : s.x[i] + (z - s.x[i]) * s.keep;
    }
    const T second = shrinkage(sum_of(s.dim,
                                      [&](int64_t i) {
                                          const double d = static_cast<double>(s.previous[i] - s.x0[i]);
                                          return d * d;
                                      }),
                               s.eps);
    for (int64_t i = 0; i < s.dim; ++i)
        s.previous[i] = between(s.x0[i] + (s.previous[i] - s.x0[i]) * second, T(0), T(1));
}

template <class T> void step_rows(const ApgdStepArgs& args, Range rows) {
    const int64_t dim = args.dim;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const auto at = [&](const void* data) { return static_cast<const T*>(data) + row * dim; };
        Sample<T> sample;
        sample.x = at(args.x), sample.x0 = at(args.x0), sample.grad = at(args.grad);
        sample.previous = static_cast<T*>(args.x_prev) + row * dim;
        sample.dim = dim;
        sample.step = static_cast<const T*>(args.step)[row];
        sample.eps = static_cast<T>(args.eps);
        sample.keep = static_cast<T>(args.momentum), sample.carry = static_cast<T>(1.0 - args.momentum);
        sample.carries = args.momentum != 1.0;
        if (args.improved && args.improved[row]) {
            memcpy(static_cast<T*>(args.best) + row * dim, sample.x, sizeof(T) * dim);
            memcpy(static_cast<T*>(args.best_grad) + row * dim, sample.grad, sizeof(T) * dim);
        }
        if (args.norm == Norm::linf)
            linf(sample);
        else
            l2(sample);
    }
}

// --- l1 --------------------------------------------------------------------------------------------------------------

// The rank-th smallest of n numbers >= 0, whose order is that of their bits: one byte of them after the other.
template <class T, class U> T ranked(const T* values, int64_t n, int64_t rank) {
    U known = 0, mask = 0;
    for (int shift = 8 * (static_cast<int>(sizeof(U)) - 1); shift >= 0; shift -= 8) {
        int64_t counts[256] = {};
        for (int64_t i = 0; i < n; ++i) {
            const U bits = bit_cast<U>(values[i]);
            if ((bits & mask) == known)
                ++counts[(bits >> shift) & 0xff];
        }
        int byte = 0;
        for (; byte < 255 && rank >= counts[byte]; ++byte)
            rank -= counts[byte];
        known |= static_cast<U>(byte) << shift;
        mask |= static_cast<U>(0xff) << shift;
    }
    return bit_cast<T>(known);
}
float ranked(const float* values, int64_t n, int64_t rank) { return ranked<float, uint32_t>(values, n, rank); }
double ranked(const double* values, int64_t n, int64_t rank) { return ranked<double, uint64_t>(values, n, rank); }

// The sum of what is left of the sizes, and how many of them shrink with the shift.
struct Falling {
    double left, slope;
};
template <class T> Falling falling(const T* size, const T* beyond, int64_t n, T shift) {
    double left[kLanes] = {};
    int32_t slope[kLanes] = {};
    const auto add = [&](int64_t i, int lane) {
        const T least = shift > beyond[i] ? shift : beyond[i];
        left[lane] += static_cast<double>(least < size[i] ? size[i] - least : T(0));
        slope[lane] += beyond[i] <= shift && shift < size[i];
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane)
            add(i + lane, lane);
    for (int lane = 0; i < n; ++i, ++lane)
        add(i, lane);
    Falling all = {0, 0};
    for (int lane = 0; lane < kLanes; ++lane) {
        all.left += left[lane];
        all.slope += slope[lane];
    }
    return all;
}

constexpr int kNewton = 50; // passes; then the interval is halved until nothing is between its ends

// By how much all sizes shrink so that their sum is eps: size to size - min(max(shift, beyond), size). The sum falls in
// the shift along straight lines: Newton's method, and halves of the interval where it would leave that.
template <class T> T common_shift(const T* size, const T* beyond, int64_t n, double eps) {
    T low = 0, high = 0, shift = 0;
    for (int64_t i = 0; i < n; ++i)
        high = size[i] > high ? size[i] : high;
    for (int pass = 0;; ++pass) {
        const Falling now = falling(size, beyond, n, shift);
        const double excess = now.left - eps;
        if ((excess <= 0 && shift == 0) || fabs(excess) <= (sizeof(T) == 4 ? 1e-8 : 1e-14) * eps)
            return shift;
        (excess > 0 ? low : high) = shift;
        // Where it rounds to the present number, the neighbour.
        T newton = low;
        if (now.slope > 0 && pass < kNewton) {
            newton = static_cast<T>(shift + excess / now.slope);
            newton = newton == shift ? neighbour(shift, excess > 0) : newton;
        }
        const T next = newton > low && newton < high ? newton : low + (high - low) / 2;
        if (!(next > low && next < high))
            return high; // neighbouring numbers: the one inside the ball
        shift = next;
    }
}

// change[i] = what to add to delta[i]; scratch: 2 * n.
template <class T> void correct(const T* delta, const T* x0, T* change, T* scratch, int64_t n, double eps) {
    T *size = scratch, *beyond = scratch + n;
    for (int64_t i = 0; i < n; ++i) {
        const T above = 1 - x0[i] - delta[i], below = x0[i] + delta[i];
        const T room = above < below ? above : below;
        size[i] = delta[i] < 0 ? -delta[i] : delta[i];
        beyond[i] = room < 0 ? -room : T(0);
    }
    const T shift = common_shift(size, beyond, n, eps);
    for (int64_t i = 0; i < n; ++i) {
        const T shrinks = shift > beyond[i] ? shift : beyond[i];
        change[i] = -sign_of(delta[i]) * (shrinks < size[i] ? shrinks : size[i]);
    }
}

template <class T> void l1_rows(const ApgdL1Args& args, Range rows, void* memory) {
    const int64_t n = args.dim;
    T *scratch = static_cast<T*>(memory), *delta = scratch + 2 * n;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * n;
        const T* x0 = static_cast<const T*>(args.x0) + row * n;
        T* out = static_cast<T*>(args.out) + row * n;
        if (!args.grad) { // x is a delta
            correct(x, x0, out, scratch, n, args.eps);
            continue;
        }
        const T* grad = static_cast<const T*>(args.grad) + row * n;
        for (int64_t i = 0; i < n; ++i)
            scratch[i] = grad[i] < 0 ? -grad[i] : grad[i];
        const T least = ranked(scratch, n, args.rank[row]);
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i)
            count += scratch[i] >= least && grad[i] != 0;
        const T length = static_cast<T>(static_cast<T>(count) + static_cast<T>(1e-10));
        const T step = static_cast<const T*>(args.step)[row] / length;
        for (int64_t i = 0; i < n; ++i)
            delta[i] = x[i] + (scratch[i] >= least ? step * sign_of(grad[i]) : T(0)) - x0[i];
        correct(delta, x0, out, scratch, n, args.eps);
        for (int64_t i = 0; i < n; ++i)
            out[i] = x0[i] + delta[i] + out[i];
    }
}

} // namespace

void apgd_step(const ApgdStepArgs& args, Range rows) {
    if (args.dtype == DType::f64)
        step_rows<double>(args, rows);
    else
        step_rows<float>(args, rows);
}

void apgd_l1(const ApgdL1Args& args, Range rows, void* scratch) {
    if (args.dtype == DType::f64)
        l1_rows<double>(args, rows, scratch);
    else
        l1_rows<float>(args, rows, scratch);
}

} // namespace ADVFAST_ISA
} // namespace advfast

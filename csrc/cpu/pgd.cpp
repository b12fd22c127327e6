// pgd_step_ and project_ on the CPU. Compiled once for each instruction set (see isa.h).
//
// A chunk of values goes through a few simple loops (gradient to sign, step, next model input) while it lies in the
// first-level cache: one pass over memory without a kernel for every combination of dtypes and operands.

#include "operands.h"

#include "../pgd_math.h"

#include <math.h>

namespace advfast {
namespace ADVFAST_ISA {
namespace {

template <class T> T not_a_number() { return static_cast<T>(__builtin_nanf("")); }

// signs[i] = sign of the gradient, NaN where it is not finite. Returns how many are not.
template <class T, class G> int64_t signs_of(const G* grad, T* signs, int64_t n) {
    int32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
        const G entry = grad[i];
        const bool finite = is_finite(entry);
        bad += !finite;
        signs[i] = finite ? sign_as<T>(entry) : not_a_number<T>();
    }
    return bad;
}

// Where the mask is false the sign becomes NaN (held). Returns how many of those were NaN before: not to be counted.
template <class T> int64_t apply_mask(const uint8_t* mask, T* signs, int64_t n) {
    int32_t uncounted = 0;
    for (int64_t i = 0; i < n; ++i) {
        uncounted += !mask[i] && signs[i] != signs[i];
        signs[i] = mask[i] ? signs[i] : not_a_number<T>();
    }
    return uncounted;
}

// The usual case in one loop: no mask, and operands that do not vary within the chunk.
template <class T, class G>
int64_t linf_step_plain(T* x, const G* grad, const T* x0, int64_t n, T alpha, T eps, T lo, T hi) {
    int32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
        const G entry = grad[i];
        const bool finite = is_finite(entry);
        bad += !finite;
        const T moved = linf_step(x[i], x0[i], sign_as<T>(entry), alpha, eps, lo, hi);
        const T held = linf_hold(x[i], x0[i], eps, lo, hi);
        x[i] = finite ? moved : held;
    }
    return bad;
}
// The projection alone.
template <class T> void linf_hold_plain(T* x, const T* x0, int64_t n, T eps, T lo, T hi) {
    for (int64_t i = 0; i < n; ++i)
        x[i] = linf_hold(x[i], x0[i], eps, lo, hi);
}
template <class T> void linf_step_each(T* x, const T* x0, const T* signs, int64_t n, const T* alpha, const T* eps,
                                       const T* lo, const T* hi) {
    for (int64_t i = 0; i < n; ++i) {
        const T moved = linf_step(x[i], x0[i], signs[i], alpha[i], eps[i], lo[i], hi[i]);
        const T held = linf_hold(x[i], x0[i], eps[i], lo[i], hi[i]);
        x[i] = signs[i] == signs[i] ? moved : held;
    }
}

template <class T, class O> void narrow(const T* x, const T* x0, O* out, int64_t n, int64_t stride) {
    if (stride == 1) {
        for (int64_t i = 0; i < n; ++i)
            out[i] = round_toward<O>(x[i], x0[i]);
    } else {
        for (int64_t i = 0; i < n; ++i)
            out[i * stride] = round_toward<O>(x[i], x0[i]);
    }
}
template <class T, class O>
void normalise(const T* x, const T* scale, const T* shift, O* out, int64_t n, int64_t stride) {
    if (stride == 1) {
        for (int64_t i = 0; i < n; ++i)
            out[i] = round_to<O>((x[i] - shift[i]) * scale[i]);
    } else {
        for (int64_t i = 0; i < n; ++i)
            out[i * stride] = round_to<O>((x[i] - shift[i]) * scale[i]);
    }
}

// A run of values that is contiguous in the layout of x and has one stride in the layout of out.
struct Run {
    int64_t length, target, stride;
};
Run next_run(const Shape& shape, Layout out_layout, int64_t start, int64_t n) {
    if (out_layout == shape.layout)
        return {n, start, 1};
    const int64_t row = shape.layout == Layout::nchw ? shape.spatial : shape.channels;
    const int64_t other = shape.layout == Layout::nchw ? shape.channels : shape.spatial;
    const int64_t outer = start / row, inner = start % row, left = row - inner;
    return {n < left ? n : left, inner * other + outer, other};
}

template <class T> struct Step {
    const PgdStepArgs& args;
    Shape shape;
    int64_t dim;
    Values<T> alpha, eps, lo, hi, scale, shift;
    Values<uint8_t> mask;
    T signs[kChunk];

    explicit Step(const PgdStepArgs& a)
        : args(a), shape{a.channels, a.spatial, a.layout}, dim(a.channels * a.spatial) {}

    T* x_at(int64_t sample, int64_t start) const { return static_cast<T*>(args.x) + sample * dim + start; }
    const T* x0_at(int64_t sample, int64_t start) const {
        return static_cast<const T*>(args.x0) + sample * dim + start;
    }

    void write_out(int64_t sample, int64_t start, int64_t n) {
        if (!args.out)
            return;
        if (args.affine) {
            scale.load(args.scale, shape, sample, start, n);
            shift.load(args.shift, shape, sample, start, n);
            scale.expanded(n);
            shift.expanded(n);
        }
        const T* x = x_at(sample, start);
        const T* x0 = x0_at(sample, start);
        with_dtype(args.out_dtype, [&](auto tag) { write_as(tag, x, x0, sample, start, n); });
    }
    template <class O> void write_as(Types<O>, const T* x, const T* x0, int64_t sample, int64_t start, int64_t n) {
        O* out = static_cast<O*>(args.out) + sample * dim;
        for (int64_t i = 0; i < n;) {
            const Run run = next_run(shape, args.out_layout, start + i, n - i);
            if (args.affine)
                normalise(x + i, scale.each + i, shift.each + i, out + run.target, run.length, run.stride);
            else
                narrow(x + i, x0 + i, out + run.target, run.length, run.stride);
            i += run.length;
        }
    }

    // --- linf: one chunk --------------------------------------------------------------------------------------------

    int64_t linf(int64_t sample, int64_t start, int64_t n) {
        alpha.load(args.alpha, shape, sample, start, n);
        eps.load(args.eps, shape, sample, start, n);
        lo.load(args.lo, shape, sample, start, n);
        hi.load(args.hi, shape, sample, start, n);
        const bool same = !alpha.each && !eps.each && !lo.each && !hi.each;
        int64_t bad = 0;
        if (same && !args.grad)
            linf_hold_plain(x_at(sample, start), x0_at(sample, start), n, eps.one, lo.one, hi.one);
        else if (same && !args.mask.data)
            with_dtype(args.grad_dtype, [&](auto tag) { bad = linf_plain(tag, sample, start, n); });
        else
            bad = linf_general(sample, start, n);
        write_out(sample, start, n);
        return bad;
    }
    template <class G> int64_t linf_plain(Types<G>, int64_t sample, int64_t start, int64_t n) {
        const G* grad = static_cast<const G*>(args.grad) + sample * dim + start;
        return linf_step_plain(x_at(sample, start), grad, x0_at(sample, start), n, alpha.one, eps.one, lo.one, hi.one);
    }
    int64_t linf_general(int64_t sample, int64_t start, int64_t n) {
        int64_t bad = 0;
        if (args.grad) {
            with_dtype(args.grad_dtype, [&](auto tag) { bad = load_signs(tag, sample, start, n); });
            if (args.mask.data) {
                mask.load(args.mask, shape, sample, start, n);
                bad -= apply_mask(mask.expanded(n), signs, n);
            }
        } else {
            for (int64_t i = 0; i < n; ++i)
                signs[i] = not_a_number<T>();
        }
        linf_step_each(x_at(sample, start), x0_at(sample, start), signs, n, alpha.expanded(n), eps.expanded(n),
                       lo.expanded(n), hi.expanded(n));
        return bad;
    }
    template <class G> int64_t load_signs(Types<G>, int64_t sample, int64_t start, int64_t n) {
        return signs_of(static_cast<const G*>(args.grad) + sample * dim + start, signs, n);
    }

    // --- l2 and l1: one sample --------------------------------------------------------------------------------------

    template <class F> void chunks(F f) const {
        for (int64_t start = 0; start < dim; start += kChunk)
            f(start, dim - start < kChunk ? dim - start : kChunk);
    }

    double gradient[kChunk]; // as double, 0 where masked or not finite
    T direction[kChunk];     // the same, divided by the norm
    int64_t bad, active;     // entries of the sample that are not finite, and that are not masked

    template <class G> void load_gradient(Types<G>, int64_t sample, int64_t start, int64_t n) {
        const G* grad = static_cast<const G*>(args.grad) + sample * dim + start;
        int32_t wrong = 0, on = 0;
        if (args.mask.data) {
            mask.load(args.mask, shape, sample, start, n);
            const uint8_t* used = mask.expanded(n);
            for (int64_t i = 0; i < n; ++i) {
                const G entry = grad[i];
                const bool finite = is_finite(entry);
                wrong += used[i] && !finite;
                on += used[i] != 0;
                gradient[i] = used[i] && finite ? to_double(entry) : 0.0;
            }
        } else {
            on = static_cast<int32_t>(n);
            for (int64_t i = 0; i < n; ++i) {
                const G entry = grad[i];
                const bool finite = is_finite(entry);
                wrong += !finite;
                gradient[i] = finite ? to_double(entry) : 0.0;
            }
        }
        bad += wrong;
        active += on;
    }

    // Sum of squares (l2) or of sizes (l1) of the gradient times factor; counts bad and active.
    double careful_sum(int64_t sample, double factor) {
        double sum = 0;
        bad = active = 0;
        chunks([&](int64_t start, int64_t n) {
            with_dtype(args.grad_dtype, [&](auto tag) { load_gradient(tag, sample, start, n); });
            const double* g = gradient;
            if (args.norm == Norm::l2)
                sum += sum_of(n, [=](int64_t i) { return (g[i] * factor) * (g[i] * factor); });
            else
                sum += sum_of(n, [=](int64_t i) { return fabs(g[i] * factor); });
        });
        return sum;
    }
    template <class G> double plain_sum(Types<G>, int64_t sample) {
        const G* g = static_cast<const G*>(args.grad) + sample * dim;
        if (args.norm == Norm::l1)
            return sum_of(dim, [=](int64_t i) { return fabs(to_double(g[i])); });
        return sum_of(dim, [=](int64_t i) {
            const double v = to_double(g[i]);
            return v * v;
        });
    }
    double largest_entry(int64_t sample) {
        double largest = 0;
        chunks([&](int64_t start, int64_t n) {
            with_dtype(args.grad_dtype, [&](auto tag) { load_gradient(tag, sample, start, n); });
            for (int64_t i = 0; i < n; ++i)
                largest = fabs(gradient[i]) > largest ? fabs(gradient[i]) : largest;
        });
        return largest;
    }

    // The norm of the gradient of a sample is norm / factor; 0: the sample does not move.
    struct Scaled {
        double norm, factor;
    };
    Scaled gradient_norm(int64_t sample) {
        // Doubles may be too large or small for T, and their squares for double; the other formats are not.
        const bool wide = args.grad_dtype == DType::f64;
        double factor = 1.0, sum = 0;
        if (!args.mask.data) {
            with_dtype(args.grad_dtype, [&](auto tag) { sum = plain_sum(tag, sample); });
            bad = 0;
            active = dim;
        }
        if (args.mask.data || !is_finite(sum))
            sum = careful_sum(sample, factor);
        if (wide && bad == 0 && !(sum > 1e-60 && sum < 1e60)) {
            const double largest = largest_entry(sample);
            factor = largest > 0 ? 1.0 / largest : 1.0;
            factor = is_finite(factor) ? factor : 8.98846567431158e307; // 2^1023
            sum = careful_sum(sample, factor);
        }
        const bool moves = bad == 0 && active > 0 && sum > 0;
        return {moves ? (args.norm == Norm::l2 ? sqrt(sum) : sum) : 0.0, factor};
    }

    // direction = gradient / norm, in T: the power of two nearest the norm first, so that nothing leaves T's range.
    struct Division {
        double shift;
        T rest;
    };
    static Division division(double norm) {
        int exponent;
        frexp(norm, &exponent);
        exponent = exponent < -120 ? -120 : exponent;
        const double power = ldexp(1.0, exponent);
        return {1.0 / power, static_cast<T>(power / norm)};
    }
    template <class G> static T divided(G entry, const Division& by) {
        return static_cast<T>(to_float(entry)) * static_cast<T>(by.shift) * by.rest;
    }
    static T divided(double entry, const Division& by) { return static_cast<T>(entry * by.shift) * by.rest; }

    template <class G> void plain_direction(Types<G>, const Division& by, int64_t sample, int64_t start, int64_t n) {
        const G* g = static_cast<const G*>(args.grad) + sample * dim + start;
        for (int64_t i = 0; i < n; ++i)
            direction[i] = divided(g[i], by);
    }
    template <class G> void plain_move(Types<G>, const Division& by, int64_t sample, int64_t start, int64_t n) {
        const G* g = static_cast<const G*>(args.grad) + sample * dim + start;
        T* x = x_at(sample, start);
        const T step = alpha.one;
        for (int64_t i = 0; i < n; ++i)
            x[i] = x[i] + step * divided(g[i], by);
    }
    void load_direction(const Scaled& size, const Division& by, int64_t sample, int64_t start, int64_t n) {
        if (!args.mask.data && size.factor == 1.0) {
            with_dtype(args.grad_dtype, [&](auto tag) { plain_direction(tag, by, sample, start, n); });
            return;
        }
        with_dtype(args.grad_dtype, [&](auto tag) { load_gradient(tag, sample, start, n); });
        for (int64_t i = 0; i < n; ++i)
            direction[i] = static_cast<T>(gradient[i] * size.factor * by.shift) * by.rest;
    }

    int64_t ball(int64_t sample) {
        bad = 0;
        const Scaled size = args.grad ? gradient_norm(sample) : Scaled{0.0, 1.0};
        const int64_t nonfinite = bad;
        const Division by = size.norm > 0 ? division(size.norm) : Division{0.0, T(0)};

        // The move. What is left in x is the unprojected iterate; its distance to x0 is summed on the way.
        double sum = 0;
        chunks([&](int64_t start, int64_t n) {
            T* x = x_at(sample, start);
            const T* x0 = x0_at(sample, start);
            if (size.norm > 0) {
                alpha.load(args.alpha, shape, sample, start, n);
                if (!args.mask.data && size.factor == 1.0 && !alpha.each) {
                    with_dtype(args.grad_dtype, [&](auto tag) { plain_move(tag, by, sample, start, n); });
                } else {
                    load_direction(size, by, sample, start, n);
                    const T* step = alpha.expanded(n);
                    for (int64_t i = 0; i < n; ++i)
                        x[i] = x[i] + step[i] * direction[i];
                }
                if (args.box_first)
                    clamp_to_box(x, sample, start, n);
            }
            if (args.norm == Norm::l2)
                sum += sum_of(n, [=](int64_t i) {
                    const double d = static_cast<double>(x[i] - x0[i]);
                    return d * d;
                });
            else
                sum += sum_of(n, [=](int64_t i) { return distance(x[i], x0[i]); });
        });
        eps.load(args.eps, shape, sample, 0, 1);
        const double radius = static_cast<double>(eps.each ? eps.each[0] : eps.one);
        const double far = args.norm == Norm::l2 ? sqrt(sum) : sum;
        const bool outside = far > radius;
        const T shrink = outside ? static_cast<T>(radius / far) : T(1);
        const Soft soft = outside && args.norm == Norm::l1 ? l1_threshold(sample, radius, far) : Soft{0.0, 1.0};
        chunks([&](int64_t start, int64_t n) {
            T* x = x_at(sample, start);
            const T* x0 = x0_at(sample, start);
            lo.load(args.lo, shape, sample, start, n);
            hi.load(args.hi, shape, sample, start, n);
            if (outside && args.norm == Norm::l2 && !lo.each && !hi.each) {
                shrink_to(x, x0, n, shrink, lo.one, hi.one);
            } else {
                if (outside && args.norm == Norm::l2)
                    for (int64_t i = 0; i < n; ++i)
                        x[i] = add_within(x0[i], (x[i] - x0[i]) * shrink);
                else if (outside)
                    for (int64_t i = 0; i < n; ++i) {
                        const double left = distance(x[i], x0[i]) - soft.theta;
                        const T kept = left > 0 ? static_cast<T>(left * soft.scale) : T(0);
                        x[i] = add_within(x0[i], x[i] < x0[i] ? -kept : kept);
                    }
                clamp_to_box(x, sample, start, n);
            }
            write_out(sample, start, n);
        });
        return nonfinite;
    }

    static void shrink_to(T* x, const T* x0, int64_t n, T shrink, T low, T high) {
        for (int64_t i = 0; i < n; ++i)
            x[i] = clamp(add_within(x0[i], (x[i] - x0[i]) * shrink), low, high);
    }
    static double distance(T x, T x0) { return fabs(static_cast<double>(x) - static_cast<double>(x0)); }

    // d -> sign(d) * max(|d| - theta, 0) * scale.
    struct Soft {
        double theta, scale;
    };

    // theta with sum(max(|d| - theta, 0)) = eps, by Newton's method from below: each pass drops the entries that end
    // at zero, and it ends when none does (Michelot 1986; the same theta as by sorting, Duchi et al. 2008).
    Soft l1_threshold(int64_t sample, double radius, double total) {
        const T* x = x_at(sample, 0);
        const T* x0 = x0_at(sample, 0);
        double theta = (total - radius) / static_cast<double>(dim);
        for (int64_t count = dim;;) {
            const double sum = sum_of(dim, [=](int64_t i) {
                const double d = distance(x[i], x0[i]);
                return d > theta ? d : 0.0;
            });
            const int64_t left =
                static_cast<int64_t>(sum_of(dim, [=](int64_t i) { return distance(x[i], x0[i]) > theta ? 1.0 : 0.0; }));
            if (left == 0 || left >= count)
                break;
            count = left;
            theta = (sum - radius) / static_cast<double>(count);
        }
        // Far outside a small ball the digits of theta do not resolve eps: what is left is scaled into the ball.
        const double left = sum_of(dim, [=](int64_t i) {
            const double d = distance(x[i], x0[i]) - theta;
            return d > 0 ? d : 0.0;
        });
        return {theta, left > radius ? radius / left : 1.0};
    }

    void clamp_to_box(T* x, int64_t sample, int64_t start, int64_t n) {
        lo.load(args.lo, shape, sample, start, n);
        hi.load(args.hi, shape, sample, start, n);
        if (!lo.each && !hi.each) {
            const T low = lo.one, high = hi.one;
            for (int64_t i = 0; i < n; ++i)
                x[i] = clamp(x[i], low, high);
            return;
        }
        const T *low = lo.expanded(n), *high = hi.expanded(n);
        for (int64_t i = 0; i < n; ++i)
            x[i] = clamp(x[i], low[i], high[i]);
    }
};

template <class T> int64_t step_units(const PgdStepArgs& args, Range units) {
    Step<T> step(args);
    int64_t bad = 0;
    if (args.norm == Norm::linf) {
        const int64_t per_sample = (step.dim + kChunk - 1) / kChunk;
        for (int64_t unit = units.begin; unit < units.end; ++unit) {
            const int64_t start = unit % per_sample * kChunk, left = step.dim - start;
            bad += step.linf(unit / per_sample, start, left < kChunk ? left : kChunk);
        }
    } else {
        for (int64_t sample = units.begin; sample < units.end; ++sample)
            bad += step.ball(sample);
    }
    return bad;
}

} // namespace

void pgd_step(const PgdStepArgs& args, Range units, int64_t* nonfinite) {
    if (args.x_dtype == DType::f64)
        *nonfinite = step_units<double>(args, units);
    else
        *nonfinite = step_units<float>(args, units);
}

} // namespace ADVFAST_ISA
} // namespace advfast

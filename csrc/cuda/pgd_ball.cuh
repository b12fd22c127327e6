// The maths of the l2 and l1 step for the vectors of one thread. Values are scaled by a power of two near their norm,
// so that their arithmetic can be in float: many GPUs have few double units. Sums are in double.
#pragma once

#include "pgd_device.cuh"

#include <cmath>

namespace advfast {

// --- the gradient
// -----------------------------------------------------------------------------------------------------

// Real is double for a double gradient and float for the others.
template <class Real, class F> ADVFAST_DEVICE void with_grad_dtype(DType dtype, F f) {
    if (sizeof(Real) == 8)
        f(0.0);
    else if (dtype == DType::f32)
        f(0.0f);
    else if (dtype == DType::f16)
        f(f16{0});
    else
        f(bf16{0});
}

// The vectors of one thread in [begin, end) of a sample: begin + V * threadIdx.x and every `stride` from there.
struct Part {
    int64_t sample, begin, end, stride;
};
template <int V, class F> ADVFAST_DEVICE void for_vectors(const Part& part, F f) {
    for (int64_t inside = part.begin + threadIdx.x * V; inside < part.end; inside += part.stride)
        f(inside);
}

// Calls use(u, inside, g, bad) with the gradient, 0 where it is masked or not finite, and the number of unmasked
// entries that are not finite. A vectors are loaded before the first is used; ahead(u, inside), u < A, can load more of
// the same places then.
template <class Real, int V, int A, class Ahead, class Use>
ADVFAST_DEVICE void for_grad(const StepTask& task, const Part& part, Ahead ahead, Use use) {
    with_grad_dtype<Real>(task.grad_dtype, [&](auto zero) {
        using G = decltype(zero);
        const G* grad = static_cast<const G*>(task.grad) + part.sample * task.shape.dim;
        for (int64_t first = part.begin + threadIdx.x * V; first < part.end; first += A * part.stride) {
            G values[A][V];
#pragma unroll
            for (int u = 0; u < A; ++u) {
                const int64_t inside = first + u * part.stride;
                if (inside < part.end) {
                    load_values(grad + inside, values[u]);
                    ahead(u, inside);
                }
            }
#pragma unroll
            for (int u = 0; u < A; ++u) {
                const int64_t inside = first + u * part.stride;
                if (inside >= part.end)
                    break;
                uint8_t on[V];
                fetch_mask(task.mask, task.shape, place<V>(task.shape, part.sample, inside), on);
                Real g[V];
                int bad = 0;
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const bool finite = is_finite(values[u][i]);
                    bad += on[i] && !finite;
                    g[i] = on[i] && finite ? static_cast<Real>(widen(values[u][i])) : Real(0);
                }
                use(u, inside, g, bad);
            }
        }
    });
}

// v * first * second * factor. The powers of two bring the norm of all v to [1, 2), where float is far from its ends.
template <class Real> struct Scaling {
    Real first, second;
    float factor;
    ADVFAST_DEVICE float operator()(Real v) const { return static_cast<float>(v * first * second) * factor; }
};
// Two powers of two: one alone would overflow for the reciprocal of a subnormal.
template <class Real> ADVFAST_DEVICE Scaling<Real> to_one(double size) {
    const int exponent = size > 0 ? -ilogb(size) : 0, half = exponent / 2;
    return {static_cast<Real>(ldexp(1.0, half)), static_cast<Real>(ldexp(1.0, exponent - half)), 1.0f};
}
// Values of norm `norm` to values of norm `target`.
template <class Real> ADVFAST_DEVICE Scaling<Real> to_norm(double norm, double target) {
    Scaling<Real> scaling = to_one<Real>(norm);
    scaling.factor = static_cast<float>(target / ldexp(norm, -ilogb(norm)));
    return scaling;
}

ADVFAST_DEVICE double norm_term(Norm norm, double v) { return norm == Norm::l2 ? v * v : fabs(v); }
ADVFAST_DEVICE double norm_of(Norm norm, double sum) { return norm == Norm::l2 ? sqrt(sum) : sum; }

// Squares of doubles overflow and underflow: the largest entry is brought to 1 first. Those of floats do not.
template <class Real, int V>
ADVFAST_DEVICE void add_grad(Norm norm, const Scaling<Real>& near_one, const Real (&g)[V], double& sum) {
#pragma unroll
    for (int i = 0; i < V; ++i)
        sum += norm_term(norm, sizeof(Real) == 8 ? g[i] * near_one.first * near_one.second : g[i]);
}

template <class Real, int V> ADVFAST_DEVICE void add_largest(const Real (&g)[V], double& largest) {
#pragma unroll
    for (int i = 0; i < V; ++i)
        largest = Largest()(largest, fabs(static_cast<double>(g[i])));
}

// The move of a sample: how its gradient becomes a vector of norm 1, and whether it moves at all.
template <class Real> struct Direction {
    Scaling<Real> unit;
    bool moves;
};
template <class Real>
ADVFAST_DEVICE Direction<Real> direction(Norm norm, const Scaling<Real>& near_one, double sum, double bad) {
    const double size = norm_of(norm, sum);
    Direction<Real> found{near_one, bad == 0 && size > 0};
    if (!found.moves)
        return found;
    if (sizeof(Real) == 8)
        found.unit.factor = static_cast<float>(1.0 / size); // of the gradient times near_one
    else
        found.unit = to_norm<Real>(size, 1.0);
    return found;
}

template <int V> ADVFAST_DEVICE void clamp_to_box(const StepTask& task, const Place<V>& at, float (&x)[V]) {
    float lo[V], hi[V];
    fetch(task.lo, task.shape, at, lo);
    fetch(task.hi, task.shape, at, hi);
#pragma unroll
    for (int i = 0; i < V; ++i)
        x[i] = clamp(x[i], lo[i], hi[i]);
}

template <class Real, int V> ADVFAST_DEVICE void move(const StepTask& task, const Place<V>& at,
                                                      const Scaling<Real>& unit, const Real (&g)[V], float (&x)[V]) {
    float alpha[V];
    fetch(task.alpha, task.shape, at, alpha);
#pragma unroll
    for (int i = 0; i < V; ++i)
        x[i] = x[i] + alpha[i] * unit(g[i]);
    if (task.box_first)
        clamp_to_box(task, at, x);
}

template <int V> ADVFAST_DEVICE void add_distance(Norm norm, const float (&x)[V], const float (&x0)[V], double& sum) {
#pragma unroll
    for (int i = 0; i < V; ++i)
        sum += norm_term(norm, x[i] - x0[i]);
}

// The projection of a sample: of its differences to x0, as rounded to float.
struct Shrink {
    bool shrinks;
    Scaling<float> scaling; // l2
    double theta, factor;   // l1: the size less theta, times a factor that makes up for the rounding of theta
};

template <int V> ADVFAST_DEVICE void finish(const StepTask& task, const Place<V>& at, const Shrink& shrink,
                                            float (&x)[V], const float (&x0)[V]) {
    if (shrink.shrinks) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = x[i] - x0[i];
            float delta;
            if (task.norm == Norm::l2) {
                delta = shrink.scaling(d);
            } else {
                const double left = fabs(static_cast<double>(d)) - shrink.theta;
                const float size = left > 0 ? static_cast<float>(left * shrink.factor) : 0.0f;
                delta = d < 0 ? -size : size;
            }
            x[i] = add_within(x0[i], delta);
        }
    }
    clamp_to_box(task, at, x);
    store_values(task.x + at.sample * task.shape.dim + at.inside, x);
    write_out(task, at, x, x0);
}

ADVFAST_DEVICE double radius_of(const StepTask& task, int64_t sample) {
    float eps[1];
    fetch(task.eps, task.shape, place<1>(task.shape, sample, 0), eps);
    return eps[0];
}

// theta with sum(max(|d| - theta, 0)) = radius, by Newton's method from below: each pass drops the entries that end at
// zero, and it ends when none does (Michelot 1986; the same theta as by sorting, Duchi et al. 2008). A block's work;
// for_each(f) calls f(d) for the differences that belong to this thread.
template <class ForEach>
ADVFAST_DEVICE Shrink l1_shrink(double radius, double total, int64_t dim, double* lanes, ForEach for_each) {
    double theta = (total - radius) / static_cast<double>(dim);
    for (double count = static_cast<double>(dim);;) {
        double sums[2] = {0.0, 0.0}; // what is left, of how many entries
        for_each([&](float d) {
            const double left = fabs(static_cast<double>(d)) - theta;
            sums[0] += left > 0 ? left : 0.0;
            sums[1] += left > 0 ? 1.0 : 0.0;
        });
        block_reduce(sums, lanes, Add{});
        const double excess = sums[0] - radius;
        if (!(excess > 0) || !(sums[1] < count))
            return {true, {}, theta, excess > 0 ? radius / sums[0] : 1.0};
        count = sums[1];
        theta += excess / count;
    }
}

template <class ForEach>
ADVFAST_DEVICE Shrink shrink_of(const StepTask& task, int64_t sample, double sum, double* lanes, ForEach for_each) {
    const double far = norm_of(task.norm, sum), radius = radius_of(task, sample);
    if (!(far > radius))
        return {};
    if (task.norm == Norm::l2)
        return {true, to_norm<float>(far, radius), 0.0, 0.0};
    return l1_shrink(radius, far, task.shape.dim, lanes, for_each);
}

ADVFAST_DEVICE void count_nonfinite(const StepTask& task, double bad) {
    if (task.nonfinite && bad > 0 && threadIdx.x == 0)
        atomicAdd(task.nonfinite, static_cast<unsigned long long>(bad));
}

} // namespace advfast

// random_start on the CPU. Compiled once for each instruction set (see isa.h).

#include "operands.h"

#include "../pgd_math.h"

#include <math.h>

namespace advfast {
namespace ADVFAST_ISA {
namespace {

constexpr double kTwoPi = 6.283185307179586;

// Four logical elements: Box-Muller pairs for l2, signed exponentials for l1.
inline void ball_draws(Norm norm, const uint32_t* words, double draws[4]) {
    if (norm == Norm::l2) {
        for (int pair = 0; pair < 2; ++pair) {
            const double radius = sqrt(-2.0 * log(static_cast<double>(open_uniform(words[2 * pair]))));
            const double angle = kTwoPi * static_cast<double>(open_uniform(words[2 * pair + 1]));
            draws[2 * pair] = radius * cos(angle);
            draws[2 * pair + 1] = radius * sin(angle);
        }
    } else {
        for (int i = 0; i < 4; ++i) {
            const double size = -log(static_cast<double>(open_uniform(words[i])));
            draws[i] = words[i] & 1u ? size : -size;
        }
    }
}

template <class T> struct Start {
    const RandomStartArgs& args;
    Shape shape;
    int64_t dim;
    Values<T> eps, lo, hi;
    uint32_t words[kChunk];

    explicit Start(const RandomStartArgs& a) : args(a), shape{a.channels, a.spatial, a.layout}, dim(shape.dim()) {}

    // Draws are numbered in NCHW order, so that the layout does not change them.
    int64_t position(int64_t logical) const {
        return args.layout == Layout::nchw ? logical
                                           : (logical % shape.spatial) * shape.channels + logical / shape.spatial;
    }
    int64_t id(int64_t sample) const { return args.sample_ids ? args.sample_ids[sample] : sample; }

    void draw(int64_t sample, int64_t start, int64_t n) {
        const int64_t number = id(sample), seed = args.seed[0];
        const uint32_t first = static_cast<uint32_t>(start / 4), offset = args.offset;
        for (uint32_t block = 0; block < static_cast<uint32_t>((n + 3) / 4); ++block) {
            const Words drawn = start_words(first + block, offset, number, seed);
            for (int i = 0; i < 4; ++i)
                words[4 * block + i] = drawn.w[i];
        }
    }
    template <class F> void chunks(int64_t sample, F f) {
        for (int64_t start = 0; start < dim; start += kChunk) {
            const int64_t n = dim - start < kChunk ? dim - start : kChunk;
            draw(sample, start, n);
            f(start, n);
        }
    }
    void load_operands(int64_t sample, int64_t start, int64_t n) {
        eps.load(args.eps, shape, sample, start, n);
        lo.load(args.lo, shape, sample, start, n);
        hi.load(args.hi, shape, sample, start, n);
        eps.expanded(n);
        lo.expanded(n);
        hi.expanded(n);
    }

    void linf(int64_t sample) {
        T* x = static_cast<T*>(args.x) + sample * dim;
        const T* x0 = static_cast<const T*>(args.x0) + sample * dim;
        chunks(sample, [&](int64_t start, int64_t n) {
            if (args.layout == Layout::nchw) {
                load_operands(sample, start, n);
                for (int64_t i = 0; i < n; ++i)
                    x[start + i] = linf_start(x0[start + i], words[i], eps.each[i], lo.each[i], hi.each[i]);
                return;
            }
            for (int64_t i = 0; i < n; ++i) {
                const int64_t at = position(start + i);
                load_operands(sample, at, 1);
                x[at] = linf_start(x0[at], words[i], eps.each[0], lo.each[0], hi.each[0]);
            }
        });
    }

    void ball(int64_t sample) {
        T* x = static_cast<T*>(args.x) + sample * dim;
        const T* x0 = static_cast<const T*>(args.x0) + sample * dim;
        double sum = 0, draws[4];
        // The draws wait in x for their norm.
        chunks(sample, [&](int64_t start, int64_t n) {
            for (int64_t first = 0; first < n; first += 4) {
                ball_draws(args.norm, words + first, draws);
                for (int64_t i = 0; i < 4 && first + i < n; ++i) {
                    x[position(start + first + i)] = static_cast<T>(draws[i]);
                    sum += args.norm == Norm::l2 ? draws[i] * draws[i] : fabs(draws[i]);
                }
            }
        });
        eps.load(args.eps, shape, sample, 0, 1);
        const double radius = static_cast<double>(*eps.expanded(1));
        const Words own = start_words(kSampleBlock, args.offset, id(sample), args.seed[0]);
        const double u = static_cast<double>(open_uniform(own.w[0]));
        // l2: a direction and radius eps * u^(1/D). l1: D of D + 1 normalised exponentials.
        const double factor = args.norm == Norm::l2 ? radius * pow(u, 1.0 / static_cast<double>(dim)) / sqrt(sum)
                                                    : radius / (sum - log(u));
        for (int64_t start = 0; start < dim; start += kChunk) {
            const int64_t n = dim - start < kChunk ? dim - start : kChunk;
            lo.load(args.lo, shape, sample, start, n);
            hi.load(args.hi, shape, sample, start, n);
            const T *low = lo.expanded(n), *high = hi.expanded(n);
            for (int64_t i = 0; i < n; ++i) {
                const T delta = static_cast<T>(static_cast<double>(x[start + i]) * factor);
                x[start + i] = clamp(add_within(x0[start + i], delta), low[i], high[i]);
            }
        }
    }
};

template <class T> void start_units(const RandomStartArgs& args, Range units) {
    Start<T> start(args);
    for (int64_t sample = units.begin; sample < units.end; ++sample) {
        if (args.norm == Norm::linf)
            start.linf(sample);
        else
            start.ball(sample);
    }
}

} // namespace

void random_start(const RandomStartArgs& args, Range units) {
    if (args.dtype == DType::f64)
        start_units<double>(args, units);
    else
        start_units<float>(args, units);
}

} // namespace ADVFAST_ISA
} // namespace advfast

// The torch-free core on the CPU: number formats, Philox, and the pgd family on every instruction set.

#include "cases.h"
#include "check.h"

#include <algorithm>
#include <sys/wait.h>
#include <unistd.h>

using namespace advfast;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// --- number formats, against an oracle in double that reads the definition of the format
// --------------------------------

// A format with `fraction` bits of mantissa: the value of a finite pattern, or of infinity as the next power of two.
struct Format {
    int fraction, bias, finite_end; // finite_end: the pattern of +infinity
    double value(int magnitude) const {
        const int exponent = magnitude >> fraction, mantissa = magnitude & ((1 << fraction) - 1);
        return exponent == 0 ? std::ldexp(mantissa, 1 - bias - fraction)
                             : std::ldexp(mantissa + (1 << fraction), exponent - bias - fraction);
    }
};
constexpr Format kHalf{10, 15, 0x7c00}, kBrain{7, 127, 0x7f80};

template <class O> void test_widening(const Format& format) {
    for (int bits = 0; bits < 65536; ++bits) {
        const int magnitude = bits & 0x7fff;
        const float got = to_float(O{static_cast<uint16_t>(bits)});
        CHECK(is_finite(O{static_cast<uint16_t>(bits)}) == (magnitude < format.finite_end));
        if (magnitude > format.finite_end) {
            CHECK(std::isnan(got));
            continue;
        }
        const double expected = magnitude == format.finite_end ? kInfinity : format.value(magnitude);
        CHECK(got == (bits & 0x8000 ? -expected : expected));
        CHECK(std::signbit(got) == ((bits & 0x8000) != 0));
    }
}

template <class O> int narrowed(float v) { return bits_of(round_to<O>(v)); }

// Every number of the format, the midpoint to the next and the floats beside both.
template <class O> void test_narrowing(const Format& format) {
    for (int low = 0; low < format.finite_end; ++low) {
        const float value = static_cast<float>(format.value(low));
        const float middle = static_cast<float>((format.value(low) + format.value(low + 1)) / 2);
        const int even = low % 2 == 0 ? low : low + 1;
        for (int sign : {0, 0x8000}) {
            const float s = sign ? -1.0f : 1.0f;
            CHECK(narrowed<O>(s * value) == (low | sign));
            CHECK(narrowed<O>(s * middle) == (even | sign));
            CHECK(narrowed<O>(s * std::nextafterf(middle, 0.0f)) == (low | sign));
            CHECK(narrowed<O>(s * std::nextafterf(middle, INFINITY)) == ((low + 1) | sign));
            CHECK(narrowed<O>(s * std::nextafterf(value, INFINITY)) == (low | sign));
        }
    }
    CHECK(narrowed<O>(INFINITY) == format.finite_end);
    CHECK(narrowed<O>(-INFINITY) == (format.finite_end | 0x8000));
    CHECK(narrowed<O>(std::numeric_limits<float>::max()) == format.finite_end);
    for (uint32_t nan : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu}) {
        const int got = narrowed<O>(bit_cast<float>(nan));
        CHECK((got & 0x7fff) > format.finite_end);
    }
    CHECK(bits_of(round_to<O>(1.0)) == narrowed<O>(1.0f)); // a double goes through float
}

template <class O> void test_neighbours(const Format& format) {
    // All finite numbers in order, both zeros as one.
    std::vector<int> ordered;
    for (int magnitude = format.finite_end - 1; magnitude > 0; --magnitude)
        ordered.push_back(magnitude | 0x8000);
    for (int magnitude = 0; magnitude < format.finite_end; ++magnitude)
        ordered.push_back(magnitude);
    const auto number = [](int bits) { return O{static_cast<uint16_t>(bits)}; };
    for (size_t i = 0; i + 1 < ordered.size(); ++i) {
        CHECK(to_float(neighbour(number(ordered[i]), true)) == to_float(number(ordered[i + 1])));
        CHECK(to_float(neighbour(number(ordered[i + 1]), false)) == to_float(number(ordered[i])));
    }
    CHECK(bits_of(neighbour(number(0x8000), true)) == 1 && bits_of(neighbour(number(0), false)) == 0x8001);
}

void test_neighbours_of_floats() {
    Random random(1);
    for (int i = 0; i < 200000; ++i) {
        const float v = bit_cast<float>(static_cast<uint32_t>(random.word()));
        const double w = bit_cast<double>(random.word());
        for (bool up : {false, true}) {
            if (is_finite(v))
                CHECK(neighbour(v, up) == std::nextafterf(v, up ? INFINITY : -INFINITY));
            if (is_finite(w))
                CHECK(neighbour(w, up) == std::nextafter(w, up ? kInfinity : -kInfinity));
        }
    }
    CHECK(neighbour(0.0f, true) == std::numeric_limits<float>::denorm_min());
    CHECK(neighbour(-0.0f, false) == -std::numeric_limits<float>::denorm_min());
}

// The result lies between x0 and x, and nothing of the format lies between it and x.
template <class O, class T> void check_round_toward(T x, T x0) {
    const double value = widen(round_toward<O>(x, x0)), to = x, from = x0;
    const double nearest = widen(round_to<O>(x));
    const bool between = from <= to ? from <= value && value <= to : to <= value && value <= from;
    if (static_cast<double>(widen(round_to<O>(x0))) == from) {
        CHECK(between);
        const double step = widen(neighbour(round_toward<O>(x, x0), from <= to));
        CHECK(value == to || (from <= to ? step > to : step < to));
    } else {
        CHECK(between || value == nearest);
    }
}
template <class O, class T> void test_round_toward(const T range) {
    Random random(2);
    for (int i = 0; i < 300000; ++i) {
        const T size = static_cast<T>(random.any({1.0, 1e-3, 1e-7, static_cast<double>(range)}));
        const T any0 = static_cast<T>(random.uniform(-1, 1)) * size;
        const T x0 = random.one_in(4) ? any0 : static_cast<T>(widen(round_to<O>(any0)));
        const T far = static_cast<T>(random.uniform(-1, 1)) * size;
        const T near = x0 + static_cast<T>(random.uniform(-1, 1)) * size * static_cast<T>(1e-3);
        check_round_toward<O>(random.one_in(2) ? far : near, x0);
        check_round_toward<O>(x0, x0);
    }
}

template <class T> void test_add_within() {
    Random random(3);
    const double ulp = std::numeric_limits<T>::epsilon();
    for (int i = 0; i < 300000; ++i) {
        const T x0 = static_cast<T>(random.one_in(8) ? 0.0 : random.uniform(-1, 1) * random.any({1.0, 1e-4, 1e6}));
        const T delta = static_cast<T>(random.uniform(-1, 1) * random.any({1.0, 1e-3, 1e-8, 1e-30, 1e4, 0.0}));
        const T z = add_within(x0, delta);
        const long double moved = static_cast<long double>(z) - x0;
        CHECK(std::fabs(moved) <= std::fabs(static_cast<long double>(delta)) * (1 + static_cast<long double>(ulp)));
        const long double error = moved - delta;
        CHECK(std::fabs(error) <= 2 * ulp * std::fmax(std::fabs(x0), std::fabs(delta)));
    }
}

// Known answers of Random123.
void test_philox() {
    const auto same = [](const Words& got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
        return got.w[0] == a && got.w[1] == b && got.w[2] == c && got.w[3] == d;
    };
    const uint32_t ones = 0xffffffffu;
    CHECK(same(philox(0, 0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
    CHECK(same(philox(ones, ones, ones, ones, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
    CHECK(same(philox(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0), 0xd16cfe09, 0x94fdcceb,
               0x5001e420, 0x24126ea1));
    // Counter (block, offset, id), key seed, in this order.
    const Words words = start_words(0x243f6a88, 0x85a308d3, 0x0370734413198a2e, 0x299f31d0a4093822);
    CHECK(same(words, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
    CHECK(symmetric_uniform(0) == -1 + 0x1p-24f && symmetric_uniform(ones) == 1 - 0x1p-24f);
    CHECK(open_uniform(0) == 0x1p-24f && open_uniform(ones) == 1 - 0x1p-24f);
}

// --- the pgd family
// ---------------------------------------------------------------------------------------------------

StepResult run_step(const StepCase& step, int threads) {
    return step.run([&](const PgdStepArgs& args) { pgd_step_cpu(args, threads); });
}

constexpr const char* kIsas[] = {"baseline", "avx2", "avx512"};

void test_steps() {
    Random random(4);
    constexpr Sizes sizes[] = {{1, 1, 1}, {5, 1, 1}, {2, 3, 5}, {3, 3, 16}, {2, 3, 81}, {2, 4, 700}, {3, 130, 2}};
    for (int i = 0; i < 900; ++i) {
        const StepCase step(random, kNorms[i % 3], random.one_in(2) ? DType::f32 : DType::f64, random.any(sizes));
        CHECK(set_cpu_isa("baseline"));
        const StepResult expected = run_step(step, 1);
        CHECK_IN(step.name(), in_ball_and_box(step, expected));
        CHECK_IN(step.name(), out_follows(step, expected));
        for (const char* isa : kIsas)
            if (set_cpu_isa(isa))
                CHECK_IN(step.name() + isa, run_step(step, 1) == expected);
    }
    CHECK(set_cpu_isa(""));
    CHECK(!set_cpu_isa("mmx"));
}

void test_extreme_radii() {
    Random random(10);
    for (int i = 0; i < 400; ++i) {
        StepCase step(random, i % 2 ? Norm::l2 : Norm::l1, random.one_in(2) ? DType::f32 : DType::f64, {2, 3, 50});
        step.make_extreme(random);
        CHECK_IN(step.name(), in_ball_and_box(step, run_step(step, 1)));
    }
}

// Enough values for the work to be split.
void test_threads() {
    Random random(5);
    for (int i = 0; i < 9; ++i) {
        const StepCase step(random, kNorms[i % 3], DType::f32, {7, 3, 3000});
        const StepResult expected = run_step(step, 1);
        for (int threads = 2; threads <= 4; ++threads)
            CHECK_IN(step.name(), run_step(step, threads) == expected);
    }
}

void test_empty() {
    Random random(6);
    for (Norm norm : kNorms)
        for (Sizes sizes : {Sizes{0, 3, 4}, Sizes{2, 3, 0}}) {
            const StepCase step(random, norm, DType::f32, sizes);
            CHECK(run_step(step, 4).nonfinite == 3); // as it was
        }
}

// The projection by sorting (Duchi et al. 2008), in double.
void test_l1_by_sorting() {
    Random random(7);
    for (int round = 0; round < 60; ++round) {
        StepCase step(random, Norm::l1, DType::f64, {2, 3, 40});
        step.args.grad = nullptr;
        step.args.eps = Operand{nullptr, Mode::value, random.any({1e-3, 0.5, 4.0, 1e3})};
        step.args.lo = Operand{nullptr, Mode::value, -kInfinity};
        step.args.hi = Operand{nullptr, Mode::value, kInfinity};
        const StepResult got = run_step(step, 1);
        const double* x0 = static_cast<const double*>(step.x0.data());
        const double* before = static_cast<const double*>(step.x.data());
        const double* after = static_cast<const double*>(got.x.data());
        for (int64_t first = 0; first < 2 * step.dim(); first += step.dim()) {
            std::vector<double> sizes;
            double total = 0;
            for (int64_t i = 0; i < step.dim(); ++i) {
                sizes.push_back(std::fabs(before[first + i] - x0[first + i]));
                total += sizes.back();
            }
            std::sort(sizes.rbegin(), sizes.rend());
            double theta = 0, sum = 0;
            for (size_t k = 0; k < sizes.size() && total > step.args.eps.value; ++k) {
                sum += sizes[k];
                const double candidate = (sum - step.args.eps.value) / static_cast<double>(k + 1);
                theta = sizes[k] > candidate ? candidate : theta;
            }
            for (int64_t i = 0; i < step.dim(); ++i) {
                const double d = before[first + i] - x0[first + i];
                const double expected = std::copysign(std::fmax(std::fabs(d) - theta, 0.0), d);
                CHECK(std::fabs(after[first + i] - x0[first + i] - expected) <= 1e-12);
            }
        }
    }
}

// A start depends on the seed, the sample id and the stream alone: not on batch, layout, instruction set or threads.
void test_random_start() {
    Random random(8);
    for (int round = 0; round < 30; ++round) {
        const DType dtype = random.one_in(2) ? DType::f32 : DType::f64;
        const int64_t channels = 3, spatial = random.any({1, 5, 16, 3000}), dim = channels * spatial, batch = 4;
        const int64_t seed = static_cast<int64_t>(random.word());
        int64_t ids[batch];
        for (int64_t& id : ids)
            id = static_cast<int64_t>(random.word());
        Buffer x0(static_cast<size_t>(batch * dim) * size_of(dtype));
        for (int64_t i = 0; i < batch * dim; ++i)
            put(x0.data(), dtype, i, 0.5);
        RandomStartArgs args;
        args.x0 = x0.data();
        args.seed = &seed;
        args.sample_ids = ids;
        args.batch = batch;
        args.channels = channels;
        args.spatial = spatial;
        args.offset = static_cast<uint32_t>(round);
        args.dtype = dtype;
        args.norm = kNorms[round % 3];
        args.eps.value = 0.25;
        args.lo.value = 0.0;
        args.hi.value = 1.0;
        const auto run = [&](RandomStartArgs a, int threads) {
            Buffer x(static_cast<size_t>(a.batch * dim) * size_of(dtype));
            a.x = x.data();
            random_start_cpu(a, threads);
            return x;
        };
        const Buffer start = run(args, 1);
        double largest = 0;
        for (int64_t b = 0; b < batch; ++b) {
            double sum = 0;
            for (int64_t i = 0; i < dim; ++i) {
                const double d = std::fabs(get(start.data(), dtype, b * dim + i) - 0.5);
                sum = args.norm == Norm::linf ? std::fmax(sum, d) : sum + (args.norm == Norm::l2 ? d * d : d);
            }
            const double size = args.norm == Norm::l2 ? std::sqrt(sum) : sum;
            CHECK(size <= 0.25 * (1 + 1e-6));
            largest = std::fmax(largest, size);
        }
        CHECK(dim < 100 || largest > 0.2); // high dimensions: near the surface
        CHECK(run(args, 3) == start);
        for (const char* isa : kIsas)
            if (set_cpu_isa(isa))
                CHECK(run(args, 1) == start);
        set_cpu_isa("");

        RandomStartArgs last = args;
        last.batch = 1;
        last.sample_ids = ids + batch - 1;
        const Buffer alone = run(last, 1);
        CHECK(!std::memcmp(alone.data(), static_cast<const char*>(start.data()) + (batch - 1) * alone.bytes(),
                           alone.bytes()));
        RandomStartArgs other = args;
        other.layout = Layout::nhwc;
        const Buffer nhwc = run(other, 1);
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t i = 0; i < dim; ++i)
                CHECK(get(nhwc.data(), dtype, b * dim + i % spatial * channels + i / spatial) ==
                      get(start.data(), dtype, b * dim + i));
        other = args;
        other.offset += 1;
        CHECK(!(run(other, 1) == start));
    }
}

// Random convolutions against a direct sum in double; every instruction set, layout and number of threads to the bit.
void test_conv_input_grad() {
    Random random(11);
    for (int trial = 0; trial < 120; ++trial) {
        ConvInputGradArgs args;
        args.batch = random.below(4);
        args.inputs = 1 + random.below(4);
        args.outputs = 1 + random.below(19);
        args.kernel_h = 1 + random.below(5), args.kernel_w = 1 + random.below(5);
        args.stride_h = 1 + random.below(3), args.stride_w = 1 + random.below(4);
        args.pad_h = random.below(4), args.pad_w = random.below(5);
        args.height = args.kernel_h + random.below(30), args.width = args.kernel_w + random.below(40);
        args.out_h = (args.height + 2 * args.pad_h - args.kernel_h) / args.stride_h + 1;
        args.out_w = (args.width + 2 * args.pad_w - args.kernel_w) / args.stride_w + 1;
        const int64_t positions = args.out_h * args.out_w, pixels = args.height * args.width;
        std::vector<float> grad(static_cast<size_t>(args.batch * args.outputs * positions)), grad_nhwc(grad.size());
        std::vector<float> weight(static_cast<size_t>(args.outputs * args.inputs * args.kernel_h * args.kernel_w));
        std::vector<double> expected(static_cast<size_t>(args.batch * args.inputs * pixels)), size(expected.size());
        for (float& v : grad)
            v = static_cast<float>(random.uniform(-1.0, 1.0));
        for (float& v : weight)
            v = static_cast<float>(random.uniform(-1.0, 1.0));
        for (int64_t b = 0; b < args.batch; ++b)
            for (int64_t co = 0; co < args.outputs; ++co)
                for (int64_t at = 0; at < positions; ++at) {
                    const float g = grad[(b * args.outputs + co) * positions + at];
                    grad_nhwc[(b * positions + at) * args.outputs + co] = g;
                    for (int64_t ci = 0; ci < args.inputs; ++ci)
                        for (int64_t kh = 0; kh < args.kernel_h; ++kh)
                            for (int64_t kw = 0; kw < args.kernel_w; ++kw) {
                                const int64_t h = at / args.out_w * args.stride_h + kh - args.pad_h;
                                const int64_t w = at % args.out_w * args.stride_w + kw - args.pad_w;
                                if (h < 0 || w < 0 || h >= args.height || w >= args.width)
                                    continue;
                                const double term =
                                    static_cast<double>(g) *
                                    weight[((co * args.inputs + ci) * args.kernel_h + kh) * args.kernel_w + kw];
                                expected[(b * args.inputs + ci) * pixels + h * args.width + w] += term;
                                size[(b * args.inputs + ci) * pixels + h * args.width + w] += std::fabs(term);
                            }
                }
        args.weight = weight.data();
        std::vector<float> first;
        for (const char* isa : {"baseline", "avx2", "avx512"}) {
            if (!set_cpu_isa(isa))
                continue;
            for (int threads : {1, 3})
                for (Layout layout : {Layout::nchw, Layout::nhwc}) {
                    // Exactly as large as it must be, so that the sanitizers see a step over its end.
                    std::vector<float> out(expected.size(), NAN);
                    args.out = out.data();
                    args.grad = layout == Layout::nchw ? grad.data() : grad_nhwc.data();
                    args.grad_layout = args.layout = layout;
                    conv_input_grad_cpu(args, threads);
                    std::vector<float> ordered(out.size());
                    for (int64_t b = 0; b < args.batch; ++b)
                        for (int64_t ci = 0; ci < args.inputs; ++ci)
                            for (int64_t at = 0; at < pixels; ++at)
                                ordered[(b * args.inputs + ci) * pixels + at] =
                                    layout == Layout::nchw ? out[(b * args.inputs + ci) * pixels + at]
                                                           : out[(b * pixels + at) * args.inputs + ci];
                    if (first.empty())
                        first = ordered;
                    CHECK(first == ordered);
                }
        }
        for (size_t i = 0; i < first.size(); ++i)
            CHECK(std::fabs(first[i] - expected[i]) <= 1e-5 * size[i]);
    }
    set_cpu_isa("");
}

// A child that is forked after a parallel call has none of its threads, and must not wait for them.
void test_fork() {
    Random random(9);
    const StepCase step(random, Norm::l2, DType::f32, {8, 3, 4000});
    const StepResult expected = run_step(step, 4);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(run_step(step, 4) == expected ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

} // namespace

int main() {
    test_widening<f16>(kHalf);
    test_widening<bf16>(kBrain);
    test_narrowing<f16>(kHalf);
    test_narrowing<bf16>(kBrain);
    test_neighbours<f16>(kHalf);
    test_neighbours<bf16>(kBrain);
    test_neighbours_of_floats();
    test_round_toward<f16>(60000.0f);
    test_round_toward<bf16>(1e30f);
    test_round_toward<f16>(60000.0);
    test_round_toward<bf16>(1e30);
    test_round_toward<float>(1e30);
    test_add_within<float>();
    test_add_within<double>();
    test_philox();
    test_steps();
    test_extreme_radii();
    test_threads();
    test_empty();
    test_l1_by_sorting();
    test_random_start();
    test_conv_input_grad();
    test_fork();
    return check_result();
}

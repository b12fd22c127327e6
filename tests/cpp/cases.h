// Random cases of the pgd family: every norm, dtype, layout and operand mode, odd sizes, unaligned pointers.
#pragma once

#include "../../csrc/advfast.h"
#include "../../csrc/pgd_math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace advfast {

inline size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

inline void put(void* data, DType dtype, int64_t i, double v) {
    if (dtype == DType::f32)
        static_cast<float*>(data)[i] = static_cast<float>(v);
    else if (dtype == DType::f64)
        static_cast<double*>(data)[i] = v;
    else if (dtype == DType::f16)
        static_cast<f16*>(data)[i] = round_to<f16>(static_cast<float>(v));
    else
        static_cast<bf16*>(data)[i] = round_to<bf16>(static_cast<float>(v));
}
inline double get(const void* data, DType dtype, int64_t i) {
    if (dtype == DType::f32)
        return static_cast<const float*>(data)[i];
    if (dtype == DType::f64)
        return static_cast<const double*>(data)[i];
    if (dtype == DType::f16)
        return to_double(static_cast<const f16*>(data)[i]);
    return to_double(static_cast<const bf16*>(data)[i]);
}

// Memory of an exact size (for the address sanitizer), `skip` bytes after an aligned address, filled with NaN bytes.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes, size_t skip = 0)
        : memory_(new unsigned char[bytes + skip]), bytes_(bytes), skip_(skip) {
        std::memset(memory_.get(), 0xff, bytes + skip);
    }
    Buffer(const Buffer& other) : Buffer(other.bytes_, other.skip_) {
        if (bytes_ > 0)
            std::memcpy(data(), other.data(), bytes_);
    }
    Buffer& operator=(Buffer other) {
        memory_.swap(other.memory_);
        std::swap(bytes_, other.bytes_);
        std::swap(skip_, other.skip_);
        return *this;
    }
    void* data() const { return memory_ ? memory_.get() + skip_ : nullptr; }
    size_t bytes() const { return bytes_; }
    bool operator==(const Buffer& other) const {
        return bytes_ == other.bytes_ && (bytes_ == 0 || !std::memcmp(data(), other.data(), bytes_));
    }

private:
    std::unique_ptr<unsigned char[]> memory_;
    size_t bytes_ = 0, skip_ = 0;
};

class Random {
public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    uint64_t word() { return engine_(); }
    int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }
    bool one_in(int n) { return below(n) == 0; }
    double uniform(double lo, double hi) { return lo + (hi - lo) * static_cast<double>(engine_() >> 11) * 0x1p-53; }
    template <class T, size_t N> T any(const T (&choices)[N]) { return choices[below(N)]; }

private:
    std::mt19937_64 engine_;
};

struct Sizes {
    int64_t batch, channels, spatial;
    int64_t values() const { return batch * channels * spatial; }
};

struct StepResult {
    Buffer x, out;
    int64_t nonfinite;
    bool operator==(const StepResult& other) const {
        return x == other.x && out == other.out && nonfinite == other.nonfinite;
    }
};

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr Norm kNorms[] = {Norm::linf, Norm::l2, Norm::l1};
constexpr Layout kLayouts[] = {Layout::nchw, Layout::nhwc};

// Arguments of a step and the memory that they point to.
struct StepCase {
    PgdStepArgs args;
    Buffer x, grad, x0;
    std::vector<std::unique_ptr<Buffer>> operands;
    int unaligned = 0; // a bit each: x, grad, x0, out, operands

    StepCase(Random& random, Norm norm, DType dtype, Sizes sizes) {
        args.norm = norm;
        args.x_dtype = dtype;
        args.batch = sizes.batch;
        args.channels = sizes.channels;
        args.spatial = sizes.spatial;
        args.layout = random.any(kLayouts);
        args.out_layout = random.any(kLayouts);
        args.grad_dtype = random.any(kDTypes);
        args.out_dtype = random.any(kDTypes);
        args.affine = random.one_in(2);
        args.box_first = random.one_in(3);
        unaligned = random.one_in(2) ? 0 : random.one_in(2) ? 31 : 1 << random.below(5);
        const int64_t n = sizes.values();
        x = images(dtype, n, 0);
        x0 = images(dtype, n, 2);
        // Sizes where squares, reciprocals and float conversions go wrong.
        const double tiny = args.grad_dtype == DType::f64 ? 1e-300 : args.grad_dtype == DType::f16 ? 1e-7 : 1e-40;
        const double huge = args.grad_dtype == DType::f64 ? 1e300 : args.grad_dtype == DType::f16 ? 1e4 : 1e37;
        const double sizes_of_grad[] = {1.0, 1e-3, tiny, huge, 0.0};
        grad = images(args.grad_dtype, n, 1);
        const double size = random.any(sizes_of_grad);
        const bool bad = random.one_in(3);
        const double step = random.any({0.0, 0.01, 0.3, 5.0}), spread = random.any({1e-3, 0.1, 1.0});
        for (int64_t i = 0; i < n; ++i) {
            const double centre = random.uniform(0.2, 0.8);
            put(x0.data(), dtype, i, centre);
            put(x.data(), dtype, i, random.one_in(8) ? centre : centre + random.uniform(-spread, spread));
            put(grad.data(), args.grad_dtype, i, random.one_in(8) ? 0.0 : size * random.uniform(-1, 1));
            if (bad && random.one_in(static_cast<int>(n < 64 ? 8 : 2 * args.channels * args.spatial)))
                put(grad.data(), args.grad_dtype, i, random.any({INFINITY, -INFINITY, NAN}));
        }
        constexpr Mode all[] = {Mode::value, Mode::value, Mode::scalar, Mode::sample, Mode::channel, Mode::full};
        constexpr Mode ball[] = {Mode::value, Mode::value, Mode::scalar, Mode::sample};
        constexpr Mode box[] = {Mode::value, Mode::value, Mode::scalar, Mode::channel};
        // A third of the cases has numbers alone, the fast path.
        const bool numbers = random.one_in(3);
        const auto mode = [&](Mode choice) { return numbers && choice != Mode::scalar ? Mode::value : choice; };
        args.alpha = operand(random, mode(random.any(all)), step * 0.5, step);
        args.eps = operand(random, mode(norm == Norm::linf ? random.any(all) : random.any(ball)), 0.02, 0.2);
        if (args.eps.mode == Mode::value)
            args.eps.value = random.any({0.0, 8.0 / 255, 0.5, 3.0, 1e-20, 1e-6, static_cast<double>(INFINITY)});
        args.lo = operand(random, mode(random.any(box)), 0.0, 0.2);
        args.hi = operand(random, mode(random.any(box)), 0.8, 1.0);
        if (args.lo.mode == Mode::value)
            args.lo.value = random.any({0.0, static_cast<double>(-INFINITY)});
        if (args.hi.mode == Mode::value)
            args.hi.value = random.any({1.0, static_cast<double>(INFINITY)});
        args.scale = operand(random, mode(random.any(box)), 0.5, 5.0);
        args.shift = operand(random, mode(random.any(box)), 0.4, 0.5);
        const Mode masked = mode(random.any(all));
        if (masked != Mode::value) {
            args.mask = operand(random, masked, 0, 1, true);
        }
        if (random.one_in(6))
            args.grad = nullptr;
        else
            args.grad = grad.data();
        args.x0 = x0.data();
    }
    StepCase(const StepCase&) = delete;

    // A radius far below the size of the move or far above, where x0 is zero: nothing hides in the rounding of x.
    void make_extreme(Random& random) {
        std::memset(x0.data(), 0, x0.bytes());
        args.eps = Operand{nullptr, Mode::value, random.any({0.0, 1e-44, 1e-38, 1e-30, 1e-12, 1e-6, 1e10, 1e30})};
        args.alpha = Operand{nullptr, Mode::value, random.any({1e-30, 1.0, 1e3, 1e18})};
        args.lo = Operand{nullptr, Mode::value, -std::numeric_limits<double>::infinity()};
        args.hi = Operand{nullptr, Mode::value, std::numeric_limits<double>::infinity()};
    }

    // Runs `step` on copies of what it writes; out is optional.
    template <class F> StepResult run(F step, bool with_out = true) const {
        StepResult result{x, with_out ? Buffer(values() * size_of(args.out_dtype), skip(args.out_dtype, 3)) : Buffer(),
                          3};
        PgdStepArgs copy = args;
        copy.x = result.x.data();
        copy.out = result.out.data();
        copy.nonfinite = &result.nonfinite;
        step(copy);
        return result;
    }

    size_t values() const { return static_cast<size_t>(args.batch * args.channels * args.spatial); }
    int64_t dim() const { return args.channels * args.spatial; }
    int64_t channel_of(int64_t inside) const {
        return args.layout == Layout::nchw ? inside / args.spatial : inside % args.channels;
    }
    double at(const Operand& op, int64_t sample, int64_t inside) const {
        const int64_t index[] = {0, 0, sample, channel_of(inside), sample * dim() + inside};
        if (op.mode == Mode::value)
            return args.x_dtype == DType::f64 ? op.value : static_cast<double>(static_cast<float>(op.value));
        return get(op.data, args.x_dtype, index[static_cast<int>(op.mode)]);
    }
    // Where element `inside` of a sample lies in the layout of out.
    int64_t out_index(int64_t inside) const {
        if (args.layout == args.out_layout)
            return inside;
        const int64_t c = channel_of(inside);
        const int64_t s = args.layout == Layout::nchw ? inside % args.spatial : inside / args.channels;
        return args.out_layout == Layout::nchw ? c * args.spatial + s : s * args.channels + c;
    }
    std::string name() const {
        std::string text = "[norm " + std::to_string(static_cast<int>(args.norm));
        for (int64_t n : {args.batch, args.channels, args.spatial})
            text += " " + std::to_string(n);
        text += " layouts " + std::to_string(static_cast<int>(args.layout)) +
                std::to_string(static_cast<int>(args.out_layout)) + " dtypes " +
                std::to_string(static_cast<int>(args.x_dtype)) + std::to_string(static_cast<int>(args.grad_dtype)) +
                std::to_string(static_cast<int>(args.out_dtype)) + " modes ";
        for (const Operand* op : {&args.alpha, &args.eps, &args.lo, &args.hi, &args.mask, &args.scale, &args.shift})
            text += std::to_string(static_cast<int>(op->mode));
        text += " eps " + std::to_string(args.eps.value);
        text += args.grad ? "" : " project";
        text += args.box_first ? " box-first" : "";
        return text + (args.affine ? " affine" : "") + " unaligned " + std::to_string(unaligned) + "]";
    }

private:
    size_t skip(DType dtype, int bit) const { return unaligned >> bit & 1 ? size_of(dtype) : 0; }
    Buffer images(DType dtype, int64_t n, int bit) const {
        return Buffer(static_cast<size_t>(n) * size_of(dtype), skip(dtype, bit));
    }
    Operand operand(Random& random, Mode mode, double low, double high, bool mask = false) {
        Operand op;
        op.mode = mode;
        op.value = random.uniform(low, high);
        if (mode == Mode::value)
            return op;
        const int64_t lengths[] = {0, 1, args.batch, args.channels, static_cast<int64_t>(values())};
        const int64_t n = lengths[static_cast<int>(mode)];
        const size_t each = mask ? 1 : size_of(args.x_dtype);
        operands.emplace_back(new Buffer(static_cast<size_t>(n) * each, unaligned & 16 ? each : 0));
        op.data = operands.back()->data();
        for (int64_t i = 0; i < n; ++i) {
            if (mask)
                static_cast<uint8_t*>(operands.back()->data())[i] = random.one_in(3) ? 0 : 1;
            else
                put(operands.back()->data(), args.x_dtype, i, random.uniform(low, high));
        }
        return op;
    }
};

// The float64 norm of x - x0 of a sample.
inline double distance(const StepCase& step, const Buffer& x, int64_t sample) {
    double sum = 0;
    for (int64_t i = sample * step.dim(); i < (sample + 1) * step.dim(); ++i) {
        const double d = get(x.data(), step.args.x_dtype, i) - get(step.x0.data(), step.args.x_dtype, i);
        sum = step.args.norm == Norm::linf ? std::fmax(sum, std::fabs(d))
                                           : sum + (step.args.norm == Norm::l2 ? d * d : std::fabs(d));
    }
    return step.args.norm == Norm::l2 ? std::sqrt(sum) : sum;
}

// Whether x lies in the box, and in the ball as far as the documentation promises.
inline bool in_ball_and_box(const StepCase& step, const StepResult& result) {
    bool good = true;
    for (int64_t sample = 0; sample < step.args.batch; ++sample) {
        for (int64_t i = 0; i < step.dim(); ++i) {
            const double v = get(result.x.data(), step.args.x_dtype, sample * step.dim() + i);
            good = good && v >= step.at(step.args.lo, sample, i) && v <= step.at(step.args.hi, sample, i);
            if (step.args.norm == Norm::linf && step.args.x_dtype == DType::f32) {
                const float centre = static_cast<float>(get(step.x0.data(), DType::f32, sample * step.dim() + i));
                const float eps = static_cast<float>(step.at(step.args.eps, sample, i));
                good = good && v >= centre - eps && v <= centre + eps;
            }
        }
        if (step.args.norm != Norm::linf)
            good = good && distance(step, result.x, sample) <= step.at(step.args.eps, sample, 0) * (1 + 1e-6);
    }
    return good;
}

// Whether out is what the documentation says of the x and x0 beside it.
inline bool out_follows(const StepCase& step, const StepResult& result) {
    Buffer expected(result.out);
    std::memset(expected.data(), 0, expected.bytes());
    const auto narrow = [&](auto x, auto x0, auto scale, auto shift, int64_t to) {
        const auto scaled = (x - shift) * scale;
        if (step.args.out_dtype == DType::f32)
            static_cast<float*>(expected.data())[to] =
                step.args.affine ? round_to<float>(scaled) : round_toward<float>(x, x0);
        else if (step.args.out_dtype == DType::f64)
            static_cast<double*>(expected.data())[to] =
                step.args.affine ? round_to<double>(scaled) : round_toward<double>(x, x0);
        else if (step.args.out_dtype == DType::f16)
            static_cast<f16*>(expected.data())[to] =
                step.args.affine ? round_to<f16>(scaled) : round_toward<f16>(x, x0);
        else
            static_cast<bf16*>(expected.data())[to] =
                step.args.affine ? round_to<bf16>(scaled) : round_toward<bf16>(x, x0);
    };
    for (int64_t sample = 0; sample < step.args.batch; ++sample)
        for (int64_t i = 0; i < step.dim(); ++i) {
            const int64_t from = sample * step.dim() + i, to = sample * step.dim() + step.out_index(i);
            const double x = get(result.x.data(), step.args.x_dtype, from);
            const double x0 = get(step.x0.data(), step.args.x_dtype, from);
            const double scale = step.at(step.args.scale, sample, i), shift = step.at(step.args.shift, sample, i);
            if (step.args.x_dtype == DType::f64)
                narrow(x, x0, scale, shift, to);
            else
                narrow(static_cast<float>(x), static_cast<float>(x0), static_cast<float>(scale),
                       static_cast<float>(shift), to);
        }
    return expected == result.out;
}

} // namespace advfast

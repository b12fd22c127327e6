// The CUDA kernels of the ntk family, run on the host by cuda_emulator.h, against loops in double.

#include "cuda_emulator.h"

#include "../../csrc/cuda/ntk.cu"

#include "check.h"

#include <random>
#include <string>

using namespace advfast;

namespace {

// The sanitizers make switching between the threads slow.
#if defined(__SANITIZE_ADDRESS__)
constexpr unsigned kFewer = 12;
#else
constexpr unsigned kFewer = 2;
#endif

char stream_memory;
void* const kStream = &stream_memory;
constexpr Precision kPrecisions[] = {Precision::fp32, Precision::tf32, Precision::bf16, Precision::bf16x3};
constexpr const char* kNames[] = {"fp32", "tf32", "bf16", "bf16x3"};

struct Sizes {
    int64_t n1, n2, readouts1, readouts2, groups, height, kernel, stride, e, c; // kernel 0: no taps
};

// Two sides of one layer: a square convolution with padding kernel / 2, or height * height tokens.
struct Case {
    std::mt19937 random;
    std::vector<float> x1, x2, g1, g2, out;
    std::vector<int32_t> taps;
    NtkArgs args;

    Case(unsigned seed, const Sizes& sizes, bool integers) : random(seed) {
        const int64_t pixels = sizes.height * sizes.height,
                      side = sizes.kernel ? (sizes.height - 1) / sizes.stride + 1 : 0;
        const int64_t positions = sizes.kernel ? side * side : pixels;
        for (int64_t at = 0; at < positions * sizes.kernel * sizes.kernel; ++at) {
            const int64_t p = at / (sizes.kernel * sizes.kernel), u = at / sizes.kernel % sizes.kernel;
            const int64_t y = p / side * sizes.stride + u - sizes.kernel / 2;
            const int64_t x = p % side * sizes.stride + at % sizes.kernel - sizes.kernel / 2;
            const bool inside = y >= 0 && y < sizes.height && x >= 0 && x < sizes.height;
            taps.push_back(inside ? static_cast<int32_t>(y * sizes.height + x) : -1);
        }
        args.groups = sizes.groups, args.c = sizes.c, args.e = sizes.e;
        args.taps = sizes.kernel ? sizes.kernel * sizes.kernel : 1;
        args.left.n = sizes.n1, args.left.readouts = sizes.readouts1;
        args.right.n = sizes.n2, args.right.readouts = sizes.readouts2;
        for (NtkSide* one : {&args.left, &args.right}) {
            one->pixels = pixels, one->positions = positions;
            one->taps = taps.empty() ? nullptr : taps.data();
        }
        fill(x1, sizes.n1 * sizes.groups * pixels * sizes.e, integers);
        fill(x2, sizes.n2 * sizes.groups * pixels * sizes.e, integers);
        fill(g1, sizes.n1 * sizes.readouts1 * sizes.groups * positions * sizes.c, integers);
        fill(g2, sizes.n2 * sizes.readouts2 * sizes.groups * positions * sizes.c, integers);
        args.left.x = x1.data(), args.right.x = x2.data(), args.left.g = g1.data(), args.right.g = g2.data();
        args.out_stride = sizes.n2 * sizes.readouts2 + 3;
        fill(out, sizes.n1 * sizes.readouts1 * args.out_stride, true);
        name = std::to_string(sizes.n1) + "x" + std::to_string(sizes.n2) + " samples, " +
               std::to_string(sizes.readouts1) + "x" + std::to_string(sizes.readouts2) + " readouts, " +
               std::to_string(positions) + " positions";
    }

    std::string name;

    // integers: mostly zeros, so that sums stay below 256, which every precision holds.
    void fill(std::vector<float>& values, int64_t count, bool integers) {
        values.resize(static_cast<size_t>(count));
        std::normal_distribution<float> normal;
        for (float& value : values)
            value = integers ? static_cast<float>(random() % 10 == 0) - static_cast<float>(random() % 10 == 0)
                             : normal(random);
    }

    std::vector<float> run(bool chain) const {
        std::vector<float> result(out);
        NtkArgs given = args;
        given.out = result.data();
        (chain ? ntk_chain_cuda : ntk_hadamard_cuda)(given, 0, kStream);
        return result;
    }

    double patch(const std::vector<float>& x, const NtkSide& side, int64_t sample, int64_t part, int64_t p, int64_t tap,
                 int64_t i) const {
        const int64_t pixel = side.taps ? side.taps[p * args.taps + tap] : p;
        if (pixel < 0)
            return 0.0;
        return static_cast<double>(
            x[static_cast<size_t>(((sample * args.groups + part) * side.pixels + pixel) * args.e + i)]);
    }

    // The definition, added to `out`.
    std::vector<double> expected() const {
        const NtkSide &left = args.left, &right = args.right;
        std::vector<double> result(out.begin(), out.end());
        for (int64_t i = 0; i < left.n; ++i)
            for (int64_t j = 0; j < right.n; ++j)
                for (int64_t part = 0; part < args.groups; ++part)
                    for (int64_t p = 0; p < left.positions; ++p)
                        for (int64_t q = 0; q < right.positions; ++q) {
                            double gram = 0.0;
                            for (int64_t tap = 0; tap < args.taps; ++tap)
                                for (int64_t k = 0; k < args.e; ++k)
                                    gram += patch(x1, left, i, part, p, tap, k) * patch(x2, right, j, part, q, tap, k);
                            for (int64_t r = 0; r < left.readouts; ++r)
                                for (int64_t s = 0; s < right.readouts; ++s) {
                                    double product = 0.0;
                                    const size_t a = static_cast<size_t>(
                                        (((i * left.readouts + r) * args.groups + part) * left.positions + p) * args.c);
                                    const size_t b = static_cast<size_t>(
                                        (((j * right.readouts + s) * args.groups + part) * right.positions + q) *
                                        args.c);
                                    for (size_t k = 0; k < static_cast<size_t>(args.c); ++k)
                                        product += static_cast<double>(g1[a + k]) * static_cast<double>(g2[b + k]);
                                    result[static_cast<size_t>((i * left.readouts + r) * args.out_stride +
                                                               j * right.readouts + s)] += gram * product;
                                }
                        }
        return result;
    }

    // ||got - expected|| / ||expected - out||; whether all is equal; entries that `upper` leaves out do not count.
    struct Difference {
        double relative;
        bool equal, outside_kept;
    };
    Difference compare(const std::vector<float>& got, const std::vector<double>& want) const {
        double error = 0.0, size = 0.0;
        bool equal = true, kept = true;
        for (size_t at = 0; at < got.size(); ++at) {
            const int64_t row = static_cast<int64_t>(at) / args.out_stride;
            const int64_t column = static_cast<int64_t>(at) % args.out_stride;
            if (column >= args.right.n * args.right.readouts) {
                kept = kept && got[at] == out[at];
                continue;
            }
            if (args.upper && row / args.left.readouts > column / args.right.readouts)
                continue;
            const double d = static_cast<double>(got[at]) - want[at], w = want[at] - static_cast<double>(out[at]);
            error += d * d, size += w * w;
            equal = equal && d == 0.0;
        }
        return {std::sqrt(error / (size > 0.0 ? size : 1.0)), equal, kept};
    }
};

// Samples that do not fill a tile, several tiles of samples, of readouts and of positions; groups; strides; tokens; a
// channel count that 4 divides and others.
constexpr Sizes kSizes[] = {
    {3, 2, 3, 2, 1, 4, 3, 1, 5, 9}, {5, 9, 1, 1, 1, 4, 3, 1, 3, 8},   {2, 2, 17, 18, 1, 2, 0, 1, 33, 4},
    {2, 3, 2, 3, 2, 7, 3, 2, 4, 5}, {2, 1, 2, 10, 1, 6, 3, 1, 4, 12}, {1, 2, 1, 2, 1, 9, 3, 1, 2, 3},
    {2, 1, 1, 2, 3, 9, 0, 1, 3, 1}, {1, 1, 1, 1, 1, 1, 0, 1, 1, 1},   {4, 4, 2, 2, 1, 8, 1, 2, 40, 16},
};

void test_integers_are_exact() {
    unsigned seed = 1;
    for (const Sizes& sizes : kSizes) {
        const Case one(seed++, sizes, true);
        const std::vector<double> want = one.expected();
        for (Precision precision : kPrecisions) {
            if ((seed + static_cast<unsigned>(precision)) % kFewer)
                continue;
            for (bool chain : {true, false}) {
                Case given(one);
                given.args.precision = precision;
                const Case::Difference found = given.compare(given.run(chain), want);
                const std::string name =
                    given.name + (chain ? " chain " : " hadamard ") + kNames[static_cast<int>(precision)];
                CHECK_IN(name, found.equal);
                CHECK_IN(name, found.outside_kept);
            }
        }
    }
}

// The error of each precision is of the size of its rounding, and no smaller.
void test_precisions() {
    constexpr double kMost[] = {1e-6, 1e-3, 1e-2, 2e-5}, kLeast[] = {0.0, 5e-5, 5e-4, 1e-7};
    unsigned seed = 11;
    for (size_t i = 0; i < 4; i += 3) {
        const Case one(seed++, kSizes[i], false);
        const std::vector<double> want = one.expected();
        for (Precision precision : kPrecisions) {
            for (bool chain : {true, false}) {
                Case given(one);
                given.args.precision = precision;
                const double error = given.compare(given.run(chain), want).relative;
                const int at = static_cast<int>(precision);
                const std::string name =
                    given.name + (chain ? " chain " : " hadamard ") + kNames[at] + " " + std::to_string(error);
                CHECK_IN(name, error <= kMost[at]);
                CHECK_IN(name, error >= kLeast[at]);
            }
        }
    }
}

// Of numbers of one sign a cut instead of a rounding adds up, wherever it is: 3e-4 a step in tf32, 3e-3 in bf16.
void test_rounding_has_no_bias() {
    for (Precision precision : {Precision::tf32, Precision::bf16}) {
        for (bool chain : {true, false}) {
            Case one(61, {4, 4, 2, 2, 1, 4, 3, 1, 20, 24}, false);
            for (std::vector<float>* values : {&one.x1, &one.x2, &one.g1, &one.g2})
                for (float& value : *values)
                    value = std::fabs(value);
            one.args.precision = precision;
            const double error = one.compare(one.run(chain), one.expected()).relative;
            CHECK_IN(std::to_string(error), error <= (precision == Precision::tf32 ? 5e-5 : 4e-4));
        }
    }
}

// A pair has the same bits wherever it stands, so that results do not depend on the tiles of samples.
void test_places_do_not_matter() {
    const Sizes sizes{6, 5, 2, 3, 1, 4, 3, 1, 5, 9};
    for (bool chain : {true, false}) {
        Case all(21, sizes, false);
        all.args.precision = Precision::tf32;
        std::fill(all.out.begin(), all.out.end(), 0.0f);
        const std::vector<float> got = all.run(chain);
        for (int64_t i : {0, 3, 5}) {
            Case one(all);
            const int64_t x = all.args.groups * all.args.left.pixels * all.args.e;
            const int64_t g = all.args.groups * all.args.left.positions * all.args.c;
            one.args.left.x += i * x, one.args.left.g += i * 2 * g, one.args.left.n = 1;
            const int64_t j = i < 4 ? 4 - i : 0;
            one.args.right.x += j * x, one.args.right.g += j * 3 * g, one.args.right.n = 1;
            one.args.out_stride = 3;
            one.out.assign(6, 0.0f);
            const std::vector<float> alone = one.run(chain);
            for (int64_t r = 0; r < 2; ++r)
                for (int64_t s = 0; s < 3; ++s)
                    CHECK(alone[static_cast<size_t>(r * 3 + s)] ==
                          got[static_cast<size_t>((i * 2 + r) * all.args.out_stride + j * 3 + s)]);
        }
    }
}

void test_upper_leaves_blocks_out() {
    const Sizes sizes{9, 9, 2, 2, 1, 3, 3, 1, 3, 4};
    for (bool chain : {true, false}) {
        Case one(31, sizes, true);
        one.args.upper = true;
        const std::vector<float> got = one.run(chain);
        CHECK_IN(one.name, one.compare(got, one.expected()).equal);
        // Samples 8 and 0: in no block that has a wanted pair.
        CHECK(got[static_cast<size_t>(16 * one.args.out_stride)] ==
              one.out[static_cast<size_t>(16 * one.args.out_stride)]);
    }
}

void test_launches() {
    emulator::launches.clear();
    Case one(41, kSizes[0], true);
    std::vector<float> result(one.out);
    one.args.out = result.data();
    ntk_chain_cuda(one.args, 1, kStream);
    ntk_hadamard_cuda(one.args, 1, kStream);
    CHECK(emulator::launches.size() == 2);
    for (const emulator::Launch& launch : emulator::launches) {
        CHECK(launch.stream == kStream && launch.device == 1);
        CHECK(launch.shared <= 99 * 1024);
    }
    CHECK(emulator::device == 0);
    one.args.left.n = 0;
    ntk_chain_cuda(one.args, 0, kStream);
    CHECK(emulator::launches.size() == 2);
    std::string message;
    try {
        one.args.left.n = 3;
        ntk_hadamard_cuda(one.args, 7, kStream);
    } catch (const std::exception& error) {
        message = error.what();
    }
    CHECK(message.find("ntk_hadamard_: CUDA error: invalid device") == 0);
}

// Against arithmetic in double.
void test_rounding() {
    std::mt19937 random(51);
    const auto nearest = [](float v, int bits) {
        int exponent = 0;
        const double m = std::frexp(static_cast<double>(v), &exponent);
        const int shift = exponent < -125 ? bits - (-125 - exponent) : bits; // subnormals have fewer
        return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(m, shift)), exponent - shift));
    };
    int ties = 0;
    for (int i = 0; i < 200000; ++i) {
        uint32_t bits = static_cast<uint32_t>(random());
        if (i % 4 == 0)
            bits = (bits & ~0x1fffu) | 0x1000u; // a tie in tf32
        if (i % 4 == 1)
            bits = (bits & ~0xffffu) | 0x8000u; // a tie in bfloat16
        const float v = bit_cast<float>(bits);
        if (!(std::fabs(v) < 3e38f))
            continue;
        ties += i % 4 < 2;
        CHECK(bit_cast<uint32_t>(round_tf32(v)) == bit_cast<uint32_t>(nearest(v, 11)));
        CHECK(bit_cast<uint32_t>(round_bf16(v)) == bit_cast<uint32_t>(nearest(v, 8)));
    }
    CHECK(ties > 50000);
    const float infinity = HUGE_VALF;
    CHECK(round_tf32(infinity) == infinity && round_tf32(-infinity) == -infinity);
    CHECK(round_tf32(3.4028235e38f) == infinity);
    CHECK(std::isnan(round_tf32(std::nanf(""))) && std::isnan(round_bf16(std::nanf(""))));
}

} // namespace

int main() {
    test_integers_are_exact();
    // These read no other memory, and take the sanitizers minutes.
    if (kFewer == 2) {
        test_precisions();
        test_rounding_has_no_bias();
    }
    test_places_do_not_matter();
    test_upper_leaves_blocks_out();
    test_launches();
    test_rounding();
    return check_result();
}

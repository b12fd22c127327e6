// The activations and the hash on the CPU, on every instruction set, against loops over single values.

#include "cases.h"
#include "check.h"

#include <cstdint>

using namespace advfast;

namespace {

constexpr const char* kIsas[] = {"baseline", "avx2", "avx512"};

constexpr DType kActivationDTypes[] = {DType::f32, DType::f16, DType::bf16};

// Memory of an exact size, at any address that a value may have, so that the sanitizers see a step over its end.
struct Values {
    Buffer memory;
    DType dtype;
    int64_t n;

    Values(Random& random, DType type, int64_t count)
        : memory(static_cast<size_t>(count) * size_of(type), size_of(type) * static_cast<size_t>(random.below(4))),
          dtype(type), n(count) {
        // Some are subnormal in one of the formats, or too large for it.
        constexpr double special[] = {NAN,    -NAN,  INFINITY, -INFINITY, 0.0,   -0.0, 1e-45, -1e-45,
                                      -1e-40, 1e-40, 6e-8,     -6e-8,     65519, 7e4,  3e38,  -3.4e38};
        for (int64_t i = 0; i < n; ++i)
            put(memory.data(), dtype, i, random.one_in(9) ? random.any(special) : random.uniform(-2, 2));
    }
    float* floats() const { return static_cast<float*>(memory.data()); }
    float operator[](int64_t i) const { return static_cast<float>(get(memory.data(), dtype, i)); }
};

// As the format stores it.
float rounded(float v, DType dtype) {
    return dtype == DType::f16 ? to_float(round_to<f16>(v)) : dtype == DType::bf16 ? to_float(round_to<bf16>(v)) : v;
}

bool same(float a, float b) { return (a != a && b != b) || bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b); }

struct ActivationCase {
    ActivationArgs args;
    Values x, other, scale, shift;
    bool in_place;
    int kind; // 0: x, 1: x + other, 2: affine, 3: both

    ActivationCase(Random& random, DType dtype, int64_t batch, int64_t channels, int64_t spatial)
        : x(random, dtype, batch * channels * spatial), other(random, dtype, x.n), scale(random, DType::f32, channels),
          shift(random, DType::f32, channels), in_place(random.one_in(2)), kind(random.below(4)) {
        args.dtype = dtype;
        args.values = x.n, args.channels = channels, args.spatial = spatial;
        args.layout = random.any(kLayouts);
        args.other = kind % 2 ? other.memory.data() : nullptr;
        args.scale = kind >= 2 ? scale.floats() : nullptr;
    }
    int64_t channel(int64_t i) const {
        return args.layout == Layout::nhwc ? i % args.channels : i / args.spatial % args.channels;
    }
    std::string name() const {
        return "dtype=" + std::to_string(static_cast<int>(args.dtype)) + " N=" + std::to_string(x.n) +
               " C=" + std::to_string(args.channels) + " kind=" + std::to_string(kind) +
               (args.layout == Layout::nhwc ? " nhwc " : " nchw ");
    }
    // What is written, with y, or with the bits alone.
    template <class F> void check(const std::string& where, F run, const Buffer* given) const {
        ActivationArgs a = args;
        const Buffer y(x.memory);
        a.x = in_place ? y.data() : x.memory.data();
        a.y = y.data();
        const Buffer bits(given ? *given : Buffer(static_cast<size_t>((x.n + 7) / 8)));
        a.bits = static_cast<uint8_t*>(bits.data());
        run(a);
        for (int64_t i = 0; i < x.n; ++i) {
            float expected = x[i];
            const float got = static_cast<float>(get(y.data(), args.dtype, i));
            const bool bit = a.bits[i / 8] >> i % 8 & 1;
            if (given) {
                if (kind < 2) {
                    expected = bit ? (kind == 1 ? expected + other[i] : expected) : 0.0f;
                } else {
                    expected = (bit ? expected : 0.0f) * scale[channel(i)];
                    expected = kind == 3 ? expected + other[i] : expected;
                }
            } else {
                expected = kind >= 2 ? expected * scale[channel(i)] + shift[channel(i)] : expected;
                expected = kind % 2 ? expected + other[i] : expected;
                expected = rounded(expected < 0 ? 0.0f : expected, args.dtype);
                CHECK_IN(where, bit == !(expected <= 0));
            }
            CHECK_IN(where, same(got, rounded(expected, args.dtype)));
        }
        if (!given && x.n % 8) // nothing behind the last value
            CHECK_IN(where, a.bits[x.n / 8] >> x.n % 8 == 0);
        if (given)
            CHECK_IN(where, bits == *given);
    }
};

void test_activations() {
    Random random(1);
    constexpr Sizes sizes[] = {{0, 3, 4}, {1, 1, 1},  {1, 1, 7},  {2, 4, 1},    {3, 5, 3},   {2, 3, 35},
                               {1, 8, 9}, {2, 64, 4}, {3, 2, 17}, {1, 1024, 1}, {3, 11, 97}, {1, 3, 1023}};
    for (int trial = 0; trial < 720; ++trial) {
        const Sizes size = sizes[trial % 12];
        ActivationCase one(random, kActivationDTypes[trial / 12 % 3], size.batch, size.channels, size.spatial);
        Buffer bits(static_cast<size_t>((one.x.n + 7) / 8));
        for (size_t i = 0; i < bits.bytes(); ++i)
            static_cast<uint8_t*>(bits.data())[i] = static_cast<uint8_t>(random.word());
        for (const char* isa : kIsas) {
            if (!set_cpu_isa(isa))
                continue;
            one.args.shift = nullptr;
            one.check(one.name() + isa, [](const ActivationArgs& a) { gate_cpu(a, 1); }, &bits);
            one.args.shift = one.args.scale ? one.shift.floats() : nullptr;
            one.check(one.name() + isa, [](const ActivationArgs& a) { relu_bits_cpu(a, 1); }, nullptr);
        }
    }
    set_cpu_isa("");
}

// Enough values for the work to be split; and bits without values.
void test_threads_and_bits_alone() {
    Random random(2);
    for (int trial = 0; trial < 24; ++trial) {
        ActivationCase one(random, kActivationDTypes[trial % 3], 5, 7, 2001);
        one.args.shift = one.args.scale ? one.shift.floats() : nullptr;
        for (int threads = 2; threads <= 4; ++threads)
            one.check(one.name(), [=](const ActivationArgs& a) { relu_bits_cpu(a, threads); }, nullptr);
        ActivationArgs a;
        a.x = one.x.memory.data();
        a.dtype = one.args.dtype;
        a.values = one.x.n;
        const Buffer bits(static_cast<size_t>((one.x.n + 7) / 8));
        a.bits = static_cast<uint8_t*>(bits.data());
        relu_bits_cpu(a, 3);
        for (int64_t i = 0; i < one.x.n; ++i)
            CHECK((a.bits[i / 8] >> i % 8 & 1) == !(one.x[i] <= 0));
        one.args.shift = nullptr;
        one.check(one.name(), [](const ActivationArgs& args) { gate_cpu(args, 3); }, &bits);
    }
}

uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void test_row_hash() {
    // SplitMix64's own first numbers for the seed 0 (its state goes up by the same constant).
    CHECK(mix(0x9e3779b97f4a7c15u) == 0xe220a8397b1dcdafu && mix(2 * 0x9e3779b97f4a7c15u) == 0x6e789e6aa1b965f4u);
    Random random(3);
    for (int trial = 0; trial < 200; ++trial) {
        RowHashArgs args;
        args.dtype = kDTypes[trial % 4];
        args.batch = random.below(5);
        args.dim = random.any({0, 1, 2, 5, 16, 33, 1000, 9001});
        const size_t width = size_of(args.dtype), row = static_cast<size_t>(args.dim) * width;
        const Buffer x(static_cast<size_t>(args.batch) * row, width * static_cast<size_t>(random.below(2)));
        unsigned char* bytes = static_cast<unsigned char*>(x.data());
        for (size_t i = 0; i < x.bytes(); ++i)
            bytes[i] = static_cast<unsigned char>(random.one_in(3) ? 0 : random.word());
        for (size_t i = 0; i < x.bytes(); i += width)
            if (random.one_in(5)) // -0.0
                put(bytes + i, args.dtype, 0, -0.0);
        std::vector<int64_t> expected;
        for (int64_t b = 0; b < args.batch; ++b) {
            uint64_t sum = static_cast<uint64_t>(args.dim), word = 0, words = 0;
            for (int64_t i = 0; i < args.dim; ++i) {
                uint64_t value = 0;
                for (size_t k = 0; k < width; ++k) // little end first, as on all machines that this runs on
                    value |=
                        static_cast<uint64_t>(bytes[static_cast<size_t>(b) * row + static_cast<size_t>(i) * width + k])
                        << 8 * k;
                value = value == uint64_t(1) << (8 * width - 1) ? 0 : value;
                word |= width < 8 && i % 2 ? value << 32 : value;
                if (width == 8 || i % 2 || i + 1 == args.dim) {
                    sum += mix(word + ++words * 0x9e3779b97f4a7c15u);
                    word = 0;
                }
            }
            expected.push_back(static_cast<int64_t>(mix(sum)));
        }
        args.x = x.data();
        for (const char* isa : kIsas)
            for (int threads : {1, 3})
                if (set_cpu_isa(isa)) {
                    std::vector<int64_t> out(static_cast<size_t>(args.batch), 7);
                    args.out = out.data();
                    row_hash_cpu(args, threads);
                    CHECK_IN(std::string(isa), out == expected);
                }
    }
    set_cpu_isa("");
}

} // namespace

int main() {
    test_activations();
    test_threads_and_bits_alone();
    test_row_hash();
    return check_result();
}

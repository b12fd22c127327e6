// The ntk family on the CPU, on every instruction set, against loops over single numbers in double.

#include "cases.h"
#include "check.h"

using namespace advfast;

namespace {

constexpr const char* kIsas[] = {"baseline", "avx2", "avx512"};

// Numbers in memory of an exact size, so that the sanitizers see a step over its end; `skip` after an aligned address.
struct Numbers {
    Buffer memory;

    Numbers(Random& random, int64_t count)
        : memory(static_cast<size_t>(count) * sizeof(float), sizeof(float) * static_cast<size_t>(random.below(4))) {
        for (int64_t i = 0; i < count; ++i)
            data()[i] = static_cast<float>(random.uniform(-1, 1));
    }
    float* data() const { return static_cast<float*>(memory.data()); }
};

struct Operands {
    NtkSide side;
    std::vector<int32_t> taps;
    Numbers x, g;

    Operands(Random& random, const NtkArgs& layer, bool translates, bool pixels)
        : side(sizes(random, translates, pixels)), taps(static_cast<size_t>(side.positions * layer.taps)),
          x(random, side.n * layer.groups * side.pixels * layer.e),
          g(random, side.n * side.readouts * layer.groups * side.positions * layer.c) {
        for (size_t i = 0; i < taps.size(); ++i) {
            const int64_t t = static_cast<int64_t>(i) % layer.taps, p = static_cast<int64_t>(i) / layer.taps;
            const int64_t near = p + 2 * t - layer.taps;
            const int64_t pixel = translates ? near : random.below(static_cast<int>(side.pixels) + 1) - 1;
            taps[i] = static_cast<int32_t>(pixel < 0 || pixel >= side.pixels || random.one_in(9) ? -1 : pixel);
        }
        side.x = x.data(), side.g = g.data(), side.taps = pixels ? nullptr : taps.data();
    }
    static NtkSide sizes(Random& random, bool translates, bool pixels) {
        NtkSide side;
        side.n = random.below(4);
        side.readouts = random.any({1, 2, 3, 10, 11});
        side.pixels = random.any({1, 3, 8, 16, 29, 70});
        side.positions = translates || pixels ? side.pixels : random.any({1, 4, 13, 25, 40});
        return side;
    }
    int64_t pixel(int64_t p, int64_t t, const NtkArgs& layer) const {
        return side.taps ? side.taps[p * layer.taps + t] : p;
    }
    double patch(const NtkArgs& layer, int64_t i, int64_t group, int64_t p, int64_t t, int64_t k) const {
        const int64_t at = pixel(p, t, layer);
        return at < 0 ? 0 : side.x[((i * layer.groups + group) * side.pixels + at) * layer.e + k];
    }
    double gradient(const NtkArgs& layer, int64_t i, int64_t r, int64_t group, int64_t p, int64_t k) const {
        return side.g[(((i * side.readouts + r) * layer.groups + group) * side.positions + p) * layer.c + k];
    }
};

struct NtkCase {
    NtkArgs layer;
    Operands left, right;
    std::vector<double> gram, kernel; // [n1, n2, groups, positions1, positions2], [n1, readouts1, n2, readouts2]

    NtkCase(Random& random, const NtkArgs& given, bool translates, bool pixels)
        : layer(given), left(random, given, translates, pixels), right(random, given, translates, pixels) {
        layer.left = left.side, layer.right = right.side;
        const NtkSide &a = left.side, &b = right.side;
        kernel.resize(static_cast<size_t>(a.n * a.readouts * b.n * b.readouts));
        for (int64_t i = 0; i < a.n; ++i)
            for (int64_t j = 0; j < b.n; ++j)
                for (int64_t group = 0; group < layer.groups; ++group)
                    for (int64_t p = 0; p < a.positions; ++p)
                        for (int64_t q = 0; q < b.positions; ++q)
                            add(i, j, group, p, q);
    }
    NtkCase(const NtkCase&) = delete; // its sides point into it
    void add(int64_t i, int64_t j, int64_t group, int64_t p, int64_t q) {
        double k = 0;
        for (int64_t t = 0; t < layer.taps; ++t)
            for (int64_t f = 0; f < layer.e; ++f)
                k += left.patch(layer, i, group, p, t, f) * right.patch(layer, j, group, q, t, f);
        gram.push_back(k);
        const NtkSide &a = left.side, &b = right.side;
        for (int64_t r = 0; r < a.readouts; ++r)
            for (int64_t s = 0; s < b.readouts; ++s) {
                double dot = 0;
                for (int64_t f = 0; f < layer.c; ++f)
                    dot += left.gradient(layer, i, r, group, p, f) * right.gradient(layer, j, s, group, q, f);
                kernel[static_cast<size_t>(((i * a.readouts + r) * b.n + j) * b.readouts + s)] += k * dot;
            }
    }
};

// `terms` of random signs, each at most 1, were added.
bool close(float got, double wanted, double terms) { return std::fabs(got - wanted) <= 4e-6 * (1 + std::sqrt(terms)); }

void check_pairs(const NtkCase& test, const std::string& where, int threads, bool upper) {
    const NtkSide &a = test.left.side, &b = test.right.side;
    const int64_t rows = a.n * a.readouts, columns = b.n * b.readouts, stride = columns + 3;
    const auto terms = static_cast<double>(test.layer.groups * a.positions * b.positions * test.layer.c *
                                           test.layer.taps * test.layer.e);
    for (int order = 0; order < 2; ++order) {
        std::vector<float> out(static_cast<size_t>(rows * stride), 0.5f);
        NtkArgs args = test.layer;
        args.out = out.data(), args.out_stride = stride, args.upper = upper;
        (order ? ntk_hadamard_cpu : ntk_chain_cpu)(args, threads);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < stride; ++column) {
                const float got = out[static_cast<size_t>(row * stride + column)];
                if (column >= columns)
                    CHECK_IN(where, got == 0.5f);
                else if (upper && row / a.readouts > column / b.readouts)
                    continue;
                else
                    CHECK_IN(where, close(got, 0.5 + test.kernel[static_cast<size_t>(row * columns + column)], terms));
            }
    }
}

void check_gram(const NtkCase& test, const std::string& where, int threads) {
    std::vector<float> out(test.gram.size());
    NtkArgs args = test.layer;
    args.out = out.data();
    ntk_patch_gram_cpu(args, threads);
    for (size_t i = 0; i < out.size(); ++i)
        CHECK_IN(where, close(out[i], test.gram[i], static_cast<double>(args.taps * args.e)));
}

void check_rows(const NtkCase& test, const std::string& where, int threads) {
    const NtkSide& a = test.left.side;
    NtkArgs args = test.layer;
    const int64_t columns = args.taps * args.e, rows = a.n * a.readouts * args.groups * args.c;
    std::vector<float> out(static_cast<size_t>(rows * columns));
    args.out = out.data();
    ntk_rows_cpu(args, threads);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t k = row % args.c, group = row / args.c % args.groups;
            const int64_t r = row / args.c / args.groups % a.readouts, i = row / args.c / args.groups / a.readouts;
            double sum = 0;
            for (int64_t p = 0; p < a.positions; ++p)
                sum += test.left.gradient(args, i, r, group, p, k) *
                       test.left.patch(args, i, group, p, column / args.e, column % args.e);
            CHECK_IN(where,
                     close(out[static_cast<size_t>(row * columns + column)], sum, static_cast<double>(a.positions)));
        }
}

void test_random_layers() {
    Random random(5);
    for (int trial = 0; trial < 150; ++trial) {
        NtkArgs layer;
        layer.groups = random.any({1, 1, 2, 3});
        layer.c = random.any({1, 3, 5, 16, 33});
        layer.e = random.any({1, 2, 3, 16, 17, 40});
        const bool pixels = random.one_in(5);
        layer.taps = pixels ? 1 : random.any({1, 2, 4, 9});
        const NtkCase test(random, layer, random.one_in(2), pixels);
        for (const char* isa : kIsas)
            if (set_cpu_isa(isa)) {
                const std::string where = std::string(isa) + " trial " + std::to_string(trial);
                const int threads = 1 + trial % 3;
                check_pairs(test, where, threads, test.left.side.n == test.right.side.n && trial % 2);
                check_gram(test, where, threads);
                check_rows(test, where, threads);
            }
    }
    set_cpu_isa("");
}

// More than one step of depth, block of rows, of positions, of readouts and of samples.
void test_large_layer() {
    Random random(6);
    NtkArgs layer;
    layer.c = 300, layer.e = 300, layer.taps = 2;
    std::unique_ptr<const NtkCase> test;
    do
        test = std::make_unique<const NtkCase>(random, layer, true, false);
    while (test->left.side.n < 2 || test->right.side.n < 2 || test->left.side.pixels != 29 ||
           test->right.side.readouts < 11);
    for (const char* isa : kIsas)
        if (set_cpu_isa(isa)) {
            check_pairs(*test, isa, 2, false);
            check_gram(*test, isa, 2);
            check_rows(*test, isa, 2);
        }
    set_cpu_isa("");
}

} // namespace

int main() {
    test_random_layers();
    test_large_layer();
    return check_result();
}

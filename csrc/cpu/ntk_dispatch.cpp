// The ntk kernels' plan, memory and threads. Each pair of samples is one thread's work in a fixed order, so that its
// result depends neither on the number of threads nor on the other pairs.
//
// Samples of both sides are packed in blocks, into the order in which the kernels read them, and then all pairs of two
// blocks are done.

#include "isa.h"
#include "parallel.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace advfast {

namespace {

// Floats of the packed samples of one side: two blocks stay in a last-level cache.
constexpr int64_t kBlock = 1 << 20;

// Memory of the calling thread that stays for the next call: the pages of a new one would cost as much as the packing.
// Not initialised: all that is read is written before.
struct Memory {
    std::unique_ptr<float[]> floats;
    int64_t count = 0;

    float* at_least(int64_t wanted) {
        if (count < wanted) {
            floats.reset();
            count = 0;
            floats.reset(new float[static_cast<size_t>(wanted) + 16]);
            count = wanted;
        }
        const auto address = reinterpret_cast<uintptr_t>(floats.get());
        return floats.get() + (64 - address % 64) % 64 / sizeof(float);
    }
    void keep_little() {
        if (count > 4 * kBlock) {
            floats.reset();
            count = 0;
        }
    }
};
thread_local Memory memory;

int64_t up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Whether pixel and position differ by one number for each tap, as in a convolution of stride 1 that keeps the size.
bool translates(const NtkSide& side, int64_t taps) {
    for (int64_t t = 0; t < taps; ++t) {
        bool found = false;
        int64_t by = 0;
        for (int64_t p = 0; p < side.positions; ++p) {
            const int64_t pixel = side.taps[p * taps + t];
            if (pixel < 0)
                continue;
            if (found && pixel - p != by)
                return false;
            by = pixel - p;
            found = true;
        }
    }
    return true;
}

// Whether shifted sums are the cheaper way; a sum's term costs as much as that many multiplications (measured).
bool shift_is_cheaper(const NtkArgs& a, int64_t panel) {
    if (!a.left.taps || !a.right.taps)
        return false;
    const double sum = translates(a.right, a.taps) ? 4 : 24;
    const double positions = static_cast<double>(a.left.positions) * static_cast<double>(up(a.right.positions, panel));
    const double pixels = static_cast<double>(a.left.pixels) * static_cast<double>(up(a.right.pixels, panel));
    const double terms = static_cast<double>(a.taps), depth = static_cast<double>(a.e);
    return pixels * depth + sum * terms * positions < positions * terms * depth;
}

NtkPlan make_plan(const NtkArgs& a, NtkOrder order, int64_t lanes) {
    const int64_t panel = 2 * lanes, channels = up(a.c, panel);
    NtkPlan plan{};
    plan.order = order;
    plan.shift = shift_is_cheaper(a, panel);
    plan.depth = plan.shift ? a.e : a.taps * a.e;
    plan.rows1 = plan.shift ? a.left.pixels : a.left.positions;
    plan.rows2 = plan.shift ? a.right.pixels : a.right.positions;
    // Room for the columns again behind the last (hadamard), and for a column of zeros (shift).
    plan.kernel_step = up(a.right.positions, panel) + panel;
    plan.pixel_step = up(a.right.pixels + 1, panel);
    const int64_t scattered = plan.shift || !a.left.taps ? 0 : a.groups * a.left.positions * plan.depth;
    plan.left_patches = scattered;
    plan.right_patches = a.groups * up(plan.rows2, panel) * plan.depth;
    const int64_t gradients1 = a.left.readouts * a.left.positions, gradients2 = a.right.readouts * a.right.positions;
    int64_t own = 0;
    if (order == NtkOrder::chain) {
        plan.left_grads = a.groups * channels * gradients1;
        plan.right_grads = a.groups * channels * gradients2;
        own = a.left.readouts * a.right.readouts * lanes + kNtkReadouts * kNtkPositions * panel;
    } else if (order == NtkOrder::hadamard) {
        plan.right_grads = a.groups * up(gradients2, panel) * a.c;
        own = a.left.readouts * up(gradients2, panel);
    }
    const int64_t pixels = plan.shift ? (plan.rows1 + 1) * plan.pixel_step + 2 * panel : 0;
    plan.scratch = up(own, 16) + a.left.positions * plan.kernel_step + pixels + 16;
    return plan;
}

void run(const NtkArgs& a, NtkOrder order, int threads) {
    const int64_t entries1 = a.left.n * a.left.readouts * a.left.positions;
    const int64_t entries2 = a.right.n * a.right.readouts * a.right.positions;
    if (entries1 * a.groups * a.c == 0 || entries2 == 0)
        return;
    const Isa& chosen = isa();
    const int64_t lanes = chosen.ntk_lanes();
    NtkPlan plan = make_plan(a, order, lanes);
    std::vector<int32_t> shifts;
    if (plan.shift) {
        const int64_t vectors = up(a.right.positions, lanes) / lanes, all = a.taps * vectors;
        shifts.resize(static_cast<size_t>(all * (2 * lanes + 1)));
        int32_t *columns = shifts.data(), *starts = columns + all * lanes, *set = starts + all;
        chosen.ntk_shifts(a, columns, starts, set);
        plan.columns = columns, plan.starts = starts, plan.set = set;
    }
    const auto block = [](int64_t samples, int64_t floats) {
        return std::min(samples, std::max<int64_t>(1, kBlock / std::max<int64_t>(1, floats)));
    };
    const int64_t block1 = block(a.left.n, plan.left_patches + plan.left_grads);
    const int64_t block2 = block(a.right.n, plan.right_patches + plan.right_grads);
    const int64_t packed1 = plan.left_patches + plan.left_grads, packed2 = plan.right_patches + plan.right_grads;
    float* begin_left = memory.at_least(block1 * packed1 + block2 * packed2 + threads * plan.scratch);
    float *begin_right = begin_left + block1 * packed1, *scratch = begin_right + block2 * packed2;
    NtkPacked packed{begin_left,  begin_left + block1 * plan.left_patches,
                     begin_right, begin_right + block2 * plan.right_patches,
                     0,           0};
    const auto pack = [&](bool right, int64_t first, int64_t samples) {
        float* patches = right ? packed.right_patches : packed.left_patches;
        float* grads = right ? packed.right_grads : packed.left_grads;
        const int64_t patch = right ? plan.right_patches : plan.left_patches;
        const int64_t grad = right ? plan.right_grads : plan.left_grads;
        if (patch + grad == 0)
            return;
        parallel_for(samples, useful_threads(threads, samples * (patch + grad)), [&](int, int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s)
                chosen.ntk_pack(a, plan, right, first + s, patches + s * patch, grads + s * grad);
        });
    };
    const int64_t work = plan.rows1 * plan.rows2 * plan.depth + a.left.readouts * a.left.positions * a.c;
    std::vector<NtkPair> pairs;
    for (packed.left_first = 0; packed.left_first < a.left.n; packed.left_first += block1) {
        const int64_t samples1 = std::min(block1, a.left.n - packed.left_first);
        pack(false, packed.left_first, samples1);
        for (packed.right_first = 0; packed.right_first < a.right.n; packed.right_first += block2) {
            const int64_t samples2 = std::min(block2, a.right.n - packed.right_first);
            pairs.clear();
            for (int64_t i = packed.left_first; i < packed.left_first + samples1; ++i)
                for (int64_t j = packed.right_first; j < packed.right_first + samples2; ++j)
                    if (!a.upper || i <= j)
                        pairs.push_back({i, j});
            if (pairs.empty())
                continue;
            pack(true, packed.right_first, samples2);
            const auto count = static_cast<int64_t>(pairs.size());
            parallel_for(count, useful_threads(threads, count * work), [&](int part, int64_t begin, int64_t end) {
                chosen.ntk_pairs(a, plan, packed, pairs.data() + begin, end - begin, scratch + part * plan.scratch);
            });
        }
    }
    memory.keep_little();
}

} // namespace

void ntk_patch_gram_cpu(const NtkArgs& args, int threads) { run(args, NtkOrder::patch_gram, threads); }
void ntk_chain_cpu(const NtkArgs& args, int threads) { run(args, NtkOrder::chain, threads); }
void ntk_hadamard_cpu(const NtkArgs& args, int threads) { run(args, NtkOrder::hadamard, threads); }

void ntk_rows_cpu(const NtkArgs& args, int threads) {
    const Isa& chosen = isa();
    const int64_t units = args.left.n * args.groups;
    const int64_t work = args.left.readouts * args.left.positions * args.c * args.taps * args.e;
    float* scratch = memory.at_least(threads * kNtkRowsScratch);
    parallel_for(units, useful_threads(threads, units * work), [&](int part, int64_t begin, int64_t end) {
        chosen.ntk_rows(args, {begin, end}, scratch + part * kNtkRowsScratch);
    });
    memory.keep_little();
}

} // namespace advfast

// Chooses the instruction set at run time and splits the work over threads.

#include "isa.h"
#include "parallel.h"

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace advfast {

namespace {

#define ADVFAST_KERNELS(isa)                                                                                           \
    isa::pgd_step, isa::random_start, isa::conv_input_grad, isa::relu_bits, isa::gate, isa::row_hash,                  \
        isa::hyperplane_project, isa::square_window, isa::square_accept, isa::apgd_step, isa::apgd_l1, isa::ntk_lanes, \
        isa::ntk_shifts, isa::ntk_pack, isa::ntk_pairs, isa::ntk_rows

std::vector<Isa> find_isas() {
    std::vector<Isa> isas;
#if defined(ADVFAST_X86)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    isas.push_back({"avx512", ADVFAST_KERNELS(avx512), avx512});
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); // FMA: the ntk kernels
    isas.push_back({"avx2", ADVFAST_KERNELS(avx2), avx2});
#endif
    isas.push_back({"baseline", ADVFAST_KERNELS(baseline), true});
    return isas;
}

const std::vector<Isa>& isas() {
    static const std::vector<Isa> all = find_isas();
    return all;
}

const Isa* best_isa() {
    for (const Isa& isa : isas())
        if (isa.available)
            return &isa;
    return nullptr;
}

std::atomic<const Isa*> current{nullptr};

// Set in a forked child: the threads of an OpenMP runtime do not survive the fork, and a parallel region there hangs.
std::atomic<bool> forked{false};

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    (void)registered;
#endif
}

} // namespace

const Isa& isa() {
    const Isa* chosen = current.load();
    if (!chosen)
        current.store(chosen = best_isa());
    return *chosen;
}

const char* cpu_isa() { return isa().name; }

bool set_cpu_isa(const char* name) {
    if (!*name) {
        current.store(best_isa());
        return true;
    }
    for (const Isa& candidate : isas())
        if (candidate.available && !std::strcmp(candidate.name, name)) {
            current.store(&candidate);
            return true;
        }
    return false;
}

void parallel_for(int64_t units, int threads, const std::function<void(int, int64_t, int64_t)>& body) {
    watch_forks();
    const int64_t parts = threads < units ? threads : units;
    if (parts <= 1 || forked.load()) {
        if (units > 0)
            body(0, 0, units);
        return;
    }
    const auto run = [&](int part) { body(part, units * part / parts, units * (part + 1) / parts); };
#if defined(_OPENMP)
    // The runtime that torch has loaded already, so its waiting threads are used and not competed with.
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
    for (int part = 0; part < static_cast<int>(parts); ++part)
        run(part);
#else
    std::vector<std::thread> workers;
    for (int part = 1; part < static_cast<int>(parts); ++part)
        workers.emplace_back(run, part);
    run(0);
    for (std::thread& worker : workers)
        worker.join();
#endif
}

int useful_threads(int threads, int64_t values) {
    constexpr int64_t kGrain = 16384;
    const int64_t most = values / kGrain + 1;
    return static_cast<int>(most < threads ? most : threads);
}

void pgd_step_cpu(const PgdStepArgs& args, int threads) {
    const int64_t dim = args.channels * args.spatial;
    const int64_t units = args.norm == Norm::linf ? args.batch * ((dim + kChunk - 1) / kChunk) : args.batch;
    if (units == 0 || dim == 0)
        return;
    std::atomic<int64_t> nonfinite{0};
    const Isa& chosen = isa();
    parallel_for(units, useful_threads(threads, args.batch * dim), [&](int, int64_t begin, int64_t end) {
        int64_t bad = 0;
        chosen.pgd_step(args, {begin, end}, &bad);
        nonfinite += bad;
    });
    if (args.nonfinite)
        *args.nonfinite += nonfinite.load();
}

void random_start_cpu(const RandomStartArgs& args, int threads) {
    if (args.batch == 0 || args.channels * args.spatial == 0)
        return;
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.channels * args.spatial),
                 [&](int, int64_t begin, int64_t end) { chosen.random_start(args, {begin, end}); });
}

void conv_input_grad_cpu(const ConvInputGradArgs& args, int threads) {
    const int64_t columns = args.inputs * args.kernel_h * args.kernel_w;
    const int64_t work = args.batch * args.outputs * args.out_h * args.out_w * columns;
    if (args.batch * args.inputs * args.height * args.width == 0)
        return;
    // Packed weights (whole groups of columns), the padded image, one packed row: see conv.cpp.
    const int64_t floats = (columns + 16) * args.outputs +
                           args.inputs * conv_padded_rows(args) * args.stride_w * conv_phase(args) +
                           args.outputs * kConvPositions;
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, work), [&](int, int64_t begin, int64_t end) {
        std::vector<float> scratch(static_cast<size_t>(floats));
        chosen.conv_input_grad(args, {begin, end}, scratch.data());
    });
}

namespace {
// Chunks are whole bytes of bits, so that no two threads write the same one.
void in_chunks(void (*kernel)(const ActivationArgs&, Range), const ActivationArgs& args, int threads) {
    parallel_for((args.values + kChunk - 1) / kChunk, useful_threads(threads, args.values),
                 [&](int, int64_t begin, int64_t end) { kernel(args, {begin, end}); });
}
} // namespace

void relu_bits_cpu(const ActivationArgs& args, int threads) { in_chunks(isa().relu_bits, args, threads); }
void gate_cpu(const ActivationArgs& args, int threads) { in_chunks(isa().gate, args, threads); }

void row_hash_cpu(const RowHashArgs& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.dim),
                 [&](int, int64_t begin, int64_t end) { chosen.row_hash(args, {begin, end}); });
}

void hyperplane_project_cpu(const HyperplaneArgs& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.dim), [&](int, int64_t begin, int64_t end) {
        std::vector<int64_t> heap(args.norm == Norm::l1 ? static_cast<size_t>(args.dim) : 0);
        chosen.hyperplane_project(args, {begin, end}, heap.data());
    });
}

void square_window_cpu(const SquareArgs& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.channels * args.height * args.width),
                 [&](int, int64_t begin, int64_t end) { chosen.square_window(args, {begin, end}); });
}

void square_accept_cpu(const SquareArgs& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.channels * args.window_h * args.window_w),
                 [&](int, int64_t begin, int64_t end) { chosen.square_accept(args, {begin, end}); });
}

void apgd_step_cpu(const ApgdStepArgs& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.dim),
                 [&](int, int64_t begin, int64_t end) { chosen.apgd_step(args, {begin, end}); });
}

void apgd_l1_cpu(const ApgdL1Args& args, int threads) {
    const Isa& chosen = isa();
    parallel_for(args.batch, useful_threads(threads, args.batch * args.dim), [&](int, int64_t begin, int64_t end) {
        std::vector<double> scratch(static_cast<size_t>(3 * args.dim)); // as floats, if that is what they are
        chosen.apgd_l1(args, {begin, end}, scratch.data());
    });
}

} // namespace advfast

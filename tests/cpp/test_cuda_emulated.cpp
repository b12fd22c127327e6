// The CUDA kernels, run on the host by cuda_emulator.h, against the CPU core.

#include "cuda_emulator.h"

#include "../../csrc/cuda/pgd.cu"
#include "../../csrc/cuda/pgd_ball.cu"

#include "cases.h"
#include "check.h"

using namespace advfast;

namespace {

// The sanitizers make switching between the threads slow.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kFewer = 8;
#else
constexpr int kFewer = 1;
#endif

char stream_memory;
void* const kStream = &stream_memory;

StepResult run_cuda(const StepCase& step, bool with_out = true) {
    Buffer scratch(static_cast<size_t>(pgd_scratch_bytes(step.args)));
    return step.run(
        [&](PgdStepArgs args) {
            args.scratch = scratch.data();
            pgd_step_cuda(args, 0, kStream);
        },
        with_out);
}
StepResult run_cpu(const StepCase& step) {
    return step.run([](const PgdStepArgs& args) { pgd_step_cpu(args, 1); });
}

// l2 and l1: float arithmetic here, double there.
bool close(const StepCase& step, const Buffer& a, const Buffer& b) {
    for (size_t i = 0; i < step.values(); ++i) {
        const double x = get(a.data(), DType::f32, static_cast<int64_t>(i));
        const double y = get(b.data(), DType::f32, static_cast<int64_t>(i));
        if (!(std::fabs(x - y) <= 1e-6 * std::fmax(1.0, std::fabs(y))))
            return false;
    }
    return true;
}

void check_step(const StepCase& step) {
    const std::string name = step.name();
    const StepResult cuda = run_cuda(step), cpu = run_cpu(step);
    if (step.args.norm == Norm::linf) {
        CHECK_IN(name, cuda == cpu);
    } else {
        CHECK_IN(name, close(step, cuda.x, cpu.x));
        CHECK_IN(name, cuda.nonfinite == cpu.nonfinite);
    }
    CHECK_IN(name, in_ball_and_box(step, cuda));
    CHECK_IN(name, out_follows(step, cuda));
    CHECK_IN(name, run_cuda(step, false).x == cuda.x);
}

// Shared memory a block: an A100, a small GPU, and so little that most samples are cut into chunks.
constexpr int kLimits[] = {227 * 1024, 99 * 1024, 8 * 1024, 1024};

void test_steps() {
    Random random(1);
    constexpr Sizes sizes[] = {{1, 1, 1},  {5, 1, 1},  {3, 3, 1}, {2, 1, 7},  {2, 3, 5},   {3, 3, 4},   {1, 3, 16},
                               {4, 3, 16}, {2, 4, 64}, {3, 3, 9}, {2, 3, 81}, {2, 3, 256}, {2, 130, 2}, {1, 1, 1022}};
    for (int i = 0; i < 1800 / kFewer; ++i) {
        emulator::shared_limit = random.any(kLimits);
        check_step(StepCase(random, kNorms[i % 3], DType::f32, random.any(sizes)));
    }
}

// Several chunks a sample, rounds of the threads, and the largest shared memory.
void test_large_steps() {
    Random random(2);
    constexpr Sizes sizes[] = {{2, 3, 3001}, {3, 3, 3000}, {1, 3, 6000}, {2, 3, 1024}};
    for (int i = 0; i < 48; i += kFewer / 2 + 1) {
        emulator::shared_limit = kLimits[i / 3 % 4];
        check_step(StepCase(random, kNorms[i % 3], DType::f32, sizes[i / 12]));
    }
    // More chunks than kMostChunks of the least size, with four values at a time and with one.
    emulator::shared_limit = kLimits[0];
    for (int64_t spatial : {262250, 262251})
        check_step(StepCase(random, spatial % 2 ? Norm::l1 : Norm::l2, DType::f32, {1, 4, spatial + (spatial % 2)}));
}

void test_fused_equals_chunks() {
    Random random(3);
    for (int i = 0; i < 40 / kFewer; ++i) {
        const StepCase step(random, i % 2 ? Norm::l2 : Norm::l1, DType::f32, {2, 3, 1000 + i % 3});
        emulator::shared_limit = kLimits[0];
        const StepResult fused = run_cuda(step);
        emulator::shared_limit = kLimits[3];
        const size_t before = emulator::launches.size();
        const StepResult chunks = run_cuda(step);
        CHECK(emulator::launches.size() - before >= 2);
        CHECK_IN(step.name(), close(step, fused.x, chunks.x));
        CHECK_IN(step.name(), chunks == run_cuda(step)); // sums have a fixed order
    }
}

void test_extreme_radii() {
    Random random(4);
    for (int i = 0; i < 400 / kFewer; ++i) {
        emulator::shared_limit = random.any(kLimits);
        StepCase step(random, i % 2 ? Norm::l2 : Norm::l1, DType::f32, {2, 3, 50});
        step.make_extreme(random);
        CHECK_IN(step.name(), in_ball_and_box(step, run_cuda(step)));
    }
}

void test_random_start() {
    Random random(5);
    constexpr Sizes sizes[] = {{1, 1, 1}, {3, 1, 1}, {2, 3, 4}, {2, 3, 5}, {3, 4, 64}, {2, 3, 400}, {1, 5, 333}};
    for (int i = 0; i < 300 / kFewer; ++i) {
        // Of the arguments of a step: sizes, layout and operands.
        StepCase step(random, kNorms[i % 3], DType::f32, random.any(sizes));
        if (step.args.eps.mode == Mode::value)
            step.args.eps.value = random.any({0.0, 0.1, 2.0, 1e-6});
        std::vector<int64_t> ids(static_cast<size_t>(step.args.batch));
        for (int64_t& id : ids)
            id = static_cast<int64_t>(random.word());
        const int64_t seed = static_cast<int64_t>(random.word());
        RandomStartArgs args;
        args.x0 = step.x0.data();
        args.seed = &seed;
        args.sample_ids = random.one_in(2) ? ids.data() : nullptr;
        args.batch = step.args.batch;
        args.channels = step.args.channels;
        args.spatial = step.args.spatial;
        args.offset = static_cast<uint32_t>(random.word());
        args.layout = step.args.layout;
        args.norm = step.args.norm;
        args.eps = step.args.eps;
        args.lo = step.args.lo;
        args.hi = step.args.hi;
        StepResult cuda{Buffer(step.x), Buffer(), 0}, cpu{Buffer(step.x), Buffer(), 0};
        std::memset(cuda.x.data(), 0xff, cuda.x.bytes());
        args.x = cuda.x.data();
        random_start_cuda(args, 0, kStream);
        args.x = cpu.x.data();
        random_start_cpu(args, 1);
        if (args.norm == Norm::linf)
            CHECK_IN(step.name(), cuda == cpu);
        else
            CHECK_IN(step.name(), close(step, cuda.x, cpu.x));
        CHECK_IN(step.name(), in_ball_and_box(step, cuda));
    }
}

template <class F> std::string message_of(F f) {
    try {
        f();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

void test_launches() {
    Random random(6);
    emulator::shared_limit = kLimits[3];
    emulator::launches.clear();
    for (Norm norm : kNorms) {
        const StepCase step(random, norm, DType::f32, {2, 3, 100});
        Buffer scratch(static_cast<size_t>(pgd_scratch_bytes(step.args)));
        step.run([&](PgdStepArgs args) {
            args.scratch = scratch.data();
            pgd_step_cuda(args, 1, kStream);
        });
    }
    CHECK(emulator::launches.size() >= 5);
    for (const emulator::Launch& launch : emulator::launches)
        CHECK(launch.stream == kStream && launch.device == 1);
    CHECK(emulator::device == 0); // the caller's device is back

    emulator::launches.clear();
    const StepCase empty(random, Norm::l2, DType::f32, {0, 3, 100});
    run_cuda(empty);
    CHECK(emulator::launches.empty());

    const StepCase step(random, Norm::l2, DType::f32, {2, 3, 100});
    const auto fails = [&](auto change, int device) {
        return message_of([&] {
            step.run([&](PgdStepArgs args) {
                change(args);
                pgd_step_cuda(args, device, kStream);
            });
        });
    };
    const std::string op = step.args.grad ? "pgd_step_: " : "project_: ";
    CHECK(fails([](PgdStepArgs&) {}, 0).find(op + "scratch") == 0);
    CHECK(fails([](PgdStepArgs&) {}, 7).find(op + "CUDA error: invalid device") == 0);
    CHECK(fails([](PgdStepArgs& args) { args.x_dtype = DType::f64; }, 0).find(op + "x must be float32") == 0);
    CHECK(emulator::device == 0);

    PgdStepArgs a = step.args, b;
    b.batch = a.batch;
    b.spatial = a.channels * a.spatial;
    b.norm = a.norm;
    CHECK(pgd_scratch_bytes(a) == pgd_scratch_bytes(b)); // batch, dim and norm alone
}

} // namespace

int main() {
    test_steps();
    test_large_steps();
    test_fused_equals_chunks();
    test_extreme_radii();
    test_random_start();
    test_launches();
    return check_result();
}

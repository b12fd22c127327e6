// The pgd family on the GPU: the linf step, the random start and the entry points. The l2 and l1 step: pgd_ball.cu.

#include "pgd_device.cuh"

namespace advfast {

namespace {

// --- the linf step --------------------------------------------------------------------------------------------------

// Signs of U vectors of the gradient, NaN where it is not finite. All are loaded before the first is used.
template <class G, int V, int U>
ADVFAST_DEVICE void load_signs(const G* grad, const int64_t (&start)[U], const bool (&inside)[U], float (&sign)[U][V]) {
    G values[U][V] = {};
#pragma unroll
    for (int u = 0; u < U; ++u)
        if (inside[u])
            load_values(grad + start[u], values[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const G g = values[u][i];
            sign[u][i] = is_finite(g) ? sign_as<float>(g) : bit_cast<float>(0x7fc00000u);
        }
    }
}

// Adds the counts of a warp to the counter, which is rarely touched.
ADVFAST_DEVICE void count_nonfinite(unsigned long long* counter, int bad) {
    if (!counter)
        return;
    const int total = warp_reduce(bad, Add{});
    if (total > 0 && threadIdx.x % kWarp == 0)
        atomicAdd(counter, static_cast<unsigned long long>(total));
}

// U vectors of V values a thread. kNumbers: no operand varies over the images, no mask, out in the layout of x.
template <int V, int U, bool kNumbers> __global__ void __launch_bounds__(kThreads) linf_kernel(const StepTask task) {
    static_assert(kNumbers || U == 1, "operands are held for one vector");
    const Shape& shape = task.shape;
    const int64_t values = shape.batch * shape.dim;
    int64_t start[U];
    bool inside[U];
    float x[U][V], x0[U][V], sign[U][V];
#pragma unroll
    for (int u = 0; u < U; ++u) {
        start[u] = ((static_cast<int64_t>(blockIdx.x) * U + u) * kThreads + threadIdx.x) * V;
        inside[u] = start[u] < values;
        if (inside[u]) {
            load_values(task.x + start[u], x[u]);
            load_values(task.x0 + start[u], x0[u]);
        }
    }

    // Operands before the gradient, whose conversion waits for the loads.
    float alpha[V] = {}, eps[V] = {}, lo[V] = {}, hi[V] = {}, scale[V] = {}, shift[V] = {};
    uint8_t on[V] = {};
    Place<V> at{};
    if (kNumbers) {
        const float numbers[6] = {number(task.alpha), number(task.eps),   number(task.lo),
                                  number(task.hi),    number(task.scale), number(task.shift)};
#pragma unroll
        for (int i = 0; i < V; ++i) {
            alpha[i] = numbers[0];
            eps[i] = numbers[1];
            lo[i] = numbers[2];
            hi[i] = numbers[3];
            scale[i] = numbers[4];
            shift[i] = numbers[5];
            on[i] = 1;
        }
    } else if (inside[0]) {
        const int64_t sample = divide(start[0], shape.dim);
        at = place<V>(shape, sample, start[0] - sample * shape.dim);
        fetch(task.alpha, shape, at, alpha);
        fetch(task.eps, shape, at, eps);
        fetch(task.lo, shape, at, lo);
        fetch(task.hi, shape, at, hi);
        fetch_mask(task.mask, shape, at, on);
    }

#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
        for (int i = 0; i < V; ++i)
            sign[u][i] = bit_cast<float>(0x7fc00000u);
    if (task.grad)
        with_dtype(task.grad_dtype,
                   [&](auto zero) { load_signs(static_cast<const decltype(zero)*>(task.grad), start, inside, sign); });

    int bad = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
        if (!inside[u])
            continue;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const bool finite = sign[u][i] == sign[u][i];
            bad += on[i] && !finite;
            const float moved = linf_step(x[u][i], x0[u][i], sign[u][i], alpha[i], eps[i], lo[i], hi[i]);
            const float held = linf_hold(x[u][i], x0[u][i], eps[i], lo[i], hi[i]);
            x[u][i] = on[i] && finite ? moved : held;
        }
        store_values(task.x + start[u], x[u]);
        if (kNumbers)
            at.inside = start[u]; // of one long sample
        if (!kNumbers)
            write_out(task, at, x[u], x0[u]);
        else if (task.out)
            write_out(task, at, x[u], x0[u], scale, shift);
    }
    if (task.grad)
        count_nonfinite(task.nonfinite, bad);
}

bool only_numbers(const StepTask& task) {
    bool numbers = task.mask.mode == Mode::value;
    for (const Field* field : {&task.alpha, &task.eps, &task.lo, &task.hi, &task.scale, &task.shift})
        numbers = numbers && field->number();
    return numbers && !task.transposed;
}

void linf_step(const char* op, const StepTask& task, cudaStream_t stream) {
    const int64_t values = task.shape.batch * task.shape.dim;
    const auto blocks = [&](int64_t each) { return (values + each * kThreads - 1) / (each * kThreads); };
    const bool numbers = only_numbers(task);
    if (!task.wide(!numbers))
        launch(op, linf_kernel<1, 1, false>, blocks(1), kThreads, 0, stream, task);
    else if (numbers)
        launch(op, linf_kernel<4, 2, true>, blocks(8), kThreads, 0, stream, task);
    else
        launch(op, linf_kernel<4, 1, false>, blocks(4), kThreads, 0, stream, task);
}

// --- random start ---------------------------------------------------------------------------------------------------

struct StartTask {
    float* x;
    const float* x0;
    const int64_t* seed;
    const int64_t* sample_ids;
    Shape shape;
    uint32_t offset;
    Norm norm;
    Field eps, lo, hi;
};

// Draws are numbered in NCHW order, four to a block of words, so that the layout does not change them: the places of
// consecutive draws.
struct Walk {
    int64_t channel, position, first;
    ADVFAST_DEVICE Walk(const Shape& shape, int64_t first) : first(first) {
        const int64_t spatial = shape.nchw ? shape.length : shape.rows;
        channel = shape.nchw && !shape.use_rows ? 0 : divide(first, spatial);
        position = first - channel * spatial;
    }
    ADVFAST_DEVICE Place<1> next(const Shape& shape, int64_t sample) {
        const Place<1> at{sample,
                          shape.nchw ? first : position * shape.length + channel,
                          {static_cast<int32_t>(shape.nchw ? channel : position)}};
        ++first;
        if (++position == (shape.nchw ? shape.length : shape.rows)) {
            position = 0;
            ++channel;
        }
        return at;
    }
};

ADVFAST_DEVICE Words words_of(const StartTask& task, int64_t sample, uint32_t block) {
    return start_words(block, task.offset, task.sample_ids ? task.sample_ids[sample] : sample, *task.seed);
}

template <int V> ADVFAST_DEVICE void write_start(const StartTask& task, const Place<V>& at, const uint32_t* words) {
    const int64_t to = at.sample * task.shape.dim + at.inside;
    float x0[V], eps[V], lo[V], hi[V];
    load_values(task.x0 + to, x0);
    fetch(task.eps, task.shape, at, eps);
    fetch(task.lo, task.shape, at, lo);
    fetch(task.hi, task.shape, at, hi);
#pragma unroll
    for (int i = 0; i < V; ++i)
        x0[i] = linf_start(x0[i], words[i], eps[i], lo[i], hi[i]);
    store_values(task.x + to, x0);
}

// A thread draws four logical elements; kWide: they are 16 bytes of memory.
template <bool kWide> __global__ void __launch_bounds__(kThreads) linf_start_kernel(const StartTask task) {
    const Shape& shape = task.shape;
    const int64_t blocks = (shape.dim + 3) / 4;
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (unit >= shape.batch * blocks)
        return;
    const int64_t sample = divide(unit, blocks), block = unit - sample * blocks;
    const Words words = words_of(task, sample, static_cast<uint32_t>(block));
    if (kWide) {
        write_start(task, place<4>(shape, sample, block * 4), words.w);
    } else {
        Walk walk(shape, block * 4);
        uint32_t w[4] = {words.w[0], words.w[1], words.w[2], words.w[3]};
        // Not unrolled: ptxas takes seconds over four copies.
#pragma unroll 1
        for (int64_t i = block * 4; i < block * 4 + 4 && i < shape.dim; ++i) {
            write_start(task, walk.next(shape, sample), w);
            w[0] = w[1];
            w[1] = w[2];
            w[2] = w[3];
        }
    }
}

// Four logical elements: Box-Muller pairs for l2, signed exponentials for l1. In float: within 1e-6 of the CPU's
// doubles, and fast on GPUs with few double units.
ADVFAST_DEVICE void ball_draws(Norm norm, const Words& words, float (&draws)[4]) {
    if (norm == Norm::l2) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            const float radius = sqrtf(-2.0f * logf(open_uniform(words.w[2 * pair])));
            float sine, cosine;
            sincospif(2.0f * open_uniform(words.w[2 * pair + 1]), &sine, &cosine);
            draws[2 * pair] = radius * cosine;
            draws[2 * pair + 1] = radius * sine;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float size = -logf(open_uniform(words.w[i]));
            draws[i] = words.w[i] & 1u ? size : -size;
        }
    }
}

// One block a sample, which draws everything twice: for the norm, and to write.
__global__ void __launch_bounds__(kThreads) ball_start_kernel(const StartTask task) {
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    const Shape& shape = task.shape;
    const int64_t sample = blockIdx.x;
    double sum[1] = {0.0};
#pragma unroll 1
    for (int64_t first = threadIdx.x * int64_t(4); first < shape.dim; first += 4 * kThreads) {
        float draws[4];
        ball_draws(task.norm, words_of(task, sample, static_cast<uint32_t>(first / 4)), draws);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const double draw = draws[i];
            if (first + i < shape.dim)
                sum[0] += task.norm == Norm::l2 ? draw * draw : fabs(draw);
        }
    }
    block_reduce(sum, lanes, Add{});
    if (threadIdx.x == 0) {
        float eps[1];
        fetch(task.eps, shape, place<1>(shape, sample, 0), eps);
        const double u = open_uniform(words_of(task, sample, kSampleBlock).w[0]);
        // l2: a direction and radius eps * u^(1/D). l1: D of D + 1 normalised exponentials.
        lanes[0] = task.norm == Norm::l2 ? eps[0] * pow(u, 1.0 / static_cast<double>(shape.dim)) / sqrt(sum[0])
                                         : eps[0] / (sum[0] - log(u));
    }
    __syncthreads();
    const double factor = lanes[0];
#pragma unroll 1
    for (int64_t first = threadIdx.x * int64_t(4); first < shape.dim; first += 4 * kThreads) {
        float draws[4];
        ball_draws(task.norm, words_of(task, sample, static_cast<uint32_t>(first / 4)), draws);
        Walk walk(shape, first);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (first + i >= shape.dim)
                break;
            const Place<1> at = walk.next(shape, sample);
            const int64_t to = sample * shape.dim + at.inside;
            float lo[1], hi[1];
            fetch(task.lo, shape, at, lo);
            fetch(task.hi, shape, at, hi);
            task.x[to] = clamp(add_within(task.x0[to], static_cast<float>(draws[i] * factor)), lo[0], hi[0]);
        }
    }
}

void require_float(const char* op, DType dtype) {
    if (dtype != DType::f32)
        throw std::invalid_argument(std::string(op) + ": x must be float32 on CUDA, got dtype tag " +
                                    std::to_string(static_cast<int>(dtype)));
}

} // namespace

// --- entry points ---------------------------------------------------------------------------------------------------

StepTask::StepTask(const PgdStepArgs& args)
    : x(static_cast<float*>(args.x)), grad(args.grad), x0(static_cast<const float*>(args.x0)), out(args.out),
      nonfinite(reinterpret_cast<unsigned long long*>(args.nonfinite)),
      shape(args.batch, args.channels, args.spatial, args.layout), grad_dtype(args.grad_dtype),
      out_dtype(args.out_dtype), norm(args.norm), transposed(args.out && args.out_layout != args.layout),
      affine(args.affine), box_first(args.box_first), alpha(args.alpha), eps(args.eps), lo(args.lo), hi(args.hi),
      mask(args.mask), scale(args.scale), shift(args.shift) {
    // One channel, or one position: both layouts are the same.
    transposed = transposed && args.channels > 1 && args.spatial > 1;
    if (!grad)
        alpha = mask = Field();
    if (!out || !affine)
        scale = shift = Field();
    shape.use_rows = transposed;
    for (const Field* field : {&alpha, &eps, &lo, &hi, &mask, &scale, &shift})
        shape.use_rows = shape.use_rows || field->by_channel();
    if (shape.use_rows && shape.rows > INT32_MAX)
        throw std::invalid_argument("pgd_step_: " + std::to_string(shape.rows) +
                                    " rows in a sample, at most 2^31 - 1 with operands a channel or another layout");
}

bool StepTask::wide(bool within_samples) const {
    const auto size = [](DType dtype) { return dtype == DType::f64 ? 8u : dtype == DType::f32 ? 4u : 2u; };
    const auto fits = [&](const void* data, DType dtype) { return aligned(data, size(dtype) == 2u ? 8u : 16u); };
    bool all = (within_samples ? shape.dim : shape.batch * shape.dim) % 4 == 0 && fits(x, DType::f32) &&
               fits(x0, DType::f32) && fits(grad, grad_dtype) && (transposed || fits(out, out_dtype));
    for (const Field* field : {&alpha, &eps, &lo, &hi, &scale, &shift})
        all = all && field->wide(4, 4);
    return all && mask.wide(4, 1);
}

void pgd_step_cuda(const PgdStepArgs& args, int device, void* stream) {
    const char* op = args.grad ? "pgd_step_" : "project_";
    require_float(op, args.x_dtype);
    const StepTask task(args);
    if (task.shape.batch == 0 || task.shape.dim == 0)
        return;
    const DeviceGuard guard(op, device);
    if (args.norm == Norm::linf)
        linf_step(op, task, static_cast<cudaStream_t>(stream));
    else
        ball_step(op, task, args.scratch, device, static_cast<cudaStream_t>(stream));
}

void random_start_cuda(const RandomStartArgs& args, int device, void* stream) {
    const char* op = "random_start";
    require_float(op, args.dtype);
    StartTask task{static_cast<float*>(args.x),
                   static_cast<const float*>(args.x0),
                   args.seed,
                   args.sample_ids,
                   Shape(args.batch, args.channels, args.spatial, args.layout),
                   args.offset,
                   args.norm,
                   Field(args.eps),
                   Field(args.lo),
                   Field(args.hi)};
    if (task.shape.batch == 0 || task.shape.dim == 0)
        return;
    task.shape.use_rows = task.eps.by_channel() || task.lo.by_channel() || task.hi.by_channel();
    const DeviceGuard guard(op, device);
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    if (args.norm == Norm::linf) {
        const int64_t units = task.shape.batch * ((task.shape.dim + 3) / 4);
        const bool wide = task.shape.nchw && task.shape.dim % 4 == 0 && aligned(args.x, 16) && aligned(args.x0, 16) &&
                          task.eps.wide(4, 4) && task.lo.wide(4, 4) && task.hi.wide(4, 4);
        launch(op, wide ? linf_start_kernel<true> : linf_start_kernel<false>, (units + kThreads - 1) / kThreads,
               kThreads, 0, on, task);
    } else {
        launch(op, ball_start_kernel, task.shape.batch, kThreads, kWarp * sizeof(double), on, task);
    }
}

} // namespace advfast

// The l2 and l1 step on the GPU.
//
// A sample that fits into the shared memory of a block is one block's work: one kernel, one pass over memory. A larger
// one is cut into chunks for the whole GPU: each kernel leaves one partial sum a chunk in scratch, and every block of
// the next kernel adds up those of its sample, in a fixed order.

#include "pgd_ball.cuh"

namespace advfast {

namespace {

// --- a sample in one block
// --------------------------------------------------------------------------------------------

constexpr int kMostThreads = 1024;
constexpr int kLanes = 2 * kWarp; // shared memory of block_reduce: two sums at a time

// Shared memory: lanes, the gradient (later the moved x) as Real, and if kKeep also x and x0: then all loads are in
// flight together. Every thread comes back to the values that it loaded itself, so only the sums need barriers.
template <class Real, int V, bool kKeep> __global__ void __launch_bounds__(kKeep ? kMostThreads / 2 : kMostThreads, 1)
    ball_kernel(const StepTask task) {
    constexpr int kAhead = kKeep ? 2 : 1; // 64 registers a thread are all that 1024 threads can have
    const Shape& shape = task.shape;
    const Part part{blockIdx.x, 0, shape.dim, static_cast<int64_t>(blockDim.x) * V};
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    Real* slots = reinterpret_cast<Real*>(lanes + kLanes);
    float* kept_x = reinterpret_cast<float*>(slots + shape.dim);
    float* kept_x0 = kept_x + shape.dim;
    const float* x = task.x + part.sample * shape.dim;
    const float* x0 = task.x0 + part.sample * shape.dim;

    Direction<Real> way{};
    if (task.grad) {
        double sums[2] = {0.0, 0.0}, largest[1] = {0.0}; // norm, non-finite entries
        float now[kAhead][V], centre[kAhead][V];
        for_grad<Real, V, kAhead>(
            task, part,
            [&](int u, int64_t inside) {
                if (kKeep) {
                    load_values(x + inside, now[u]);
                    load_values(x0 + inside, centre[u]);
                }
            },
            [&](int u, int64_t inside, const Real(&g)[V], int bad) {
                if (kKeep) {
                    store_values(kept_x + inside, now[u]);
                    store_values(kept_x0 + inside, centre[u]);
                }
                store_values(slots + inside, g);
                sums[1] += bad;
                if (sizeof(Real) == 4)
                    add_grad(task.norm, {}, g, sums[0]);
                else
                    add_largest(g, largest[0]);
            });
        if (kKeep) {
            x = kept_x;
            x0 = kept_x0;
        }
        Scaling<Real> near_one{};
        if (sizeof(Real) == 8) {
            block_reduce(largest, lanes, Largest{});
            near_one = to_one<Real>(largest[0]);
            for_vectors<V>(part, [&](int64_t inside) {
                Real g[V];
                load_values(slots + inside, g);
                add_grad(task.norm, near_one, g, sums[0]);
            });
        }
        block_reduce(sums, lanes, Add{});
        count_nonfinite(task, sums[1]);
        way = direction(task.norm, near_one, sums[0], sums[1]);
    }

    double distance[1] = {0.0};
    for_vectors<V>(part, [&](int64_t inside) {
        float now[V], centre[V];
        Real slot[V];
        load_values(x + inside, now);
        load_values(x0 + inside, centre);
        if (way.moves) {
            load_values(slots + inside, slot);
            move(task, place<V>(shape, part.sample, inside), way.unit, slot, now);
        }
        add_distance(task.norm, now, centre, distance[0]);
#pragma unroll
        for (int i = 0; i < V; ++i)
            slot[i] = now[i];
        store_values(slots + inside, slot);
    });
    block_reduce(distance, lanes, Add{});

    const auto load_moved = [&](int64_t inside, float (&now)[V]) {
        Real slot[V];
        load_values(slots + inside, slot);
#pragma unroll
        for (int i = 0; i < V; ++i)
            now[i] = static_cast<float>(slot[i]);
    };
    const Shrink shrink = shrink_of(task, part.sample, distance[0], lanes, [&](auto f) {
        for_vectors<V>(part, [&](int64_t inside) {
            float now[V], centre[V];
            load_moved(inside, now);
            load_values(x0 + inside, centre);
#pragma unroll
            for (int i = 0; i < V; ++i)
                f(now[i] - centre[i]);
        });
    });
    for_vectors<V>(part, [&](int64_t inside) {
        float now[V], centre[V];
        load_moved(inside, now);
        load_values(x0 + inside, centre);
        finish(task, place<V>(shape, part.sample, inside), shrink, now, centre);
    });
}

// --- a sample in chunks
// -----------------------------------------------------------------------------------------------

constexpr int kAhead = 2;
constexpr int64_t kChunk = 4096; // values a block, at least
constexpr int64_t kMostChunks = kThreads;

struct Chunks {
    int64_t size, count; // values a chunk, chunks a sample
};
Chunks chunks_of(int64_t dim) {
    const int64_t tile = 4 * kThreads, least = (dim + kMostChunks - 1) / kMostChunks;
    const int64_t size = least < kChunk ? kChunk : (least + tile - 1) / tile * tile;
    return {size, (dim + size - 1) / size};
}

// [B, chunks] each, and [B].
struct Scratch {
    double *largest, *sum, *bad, *distance;
    double *theta, *factor;
    Chunks chunks;
};

template <int V> ADVFAST_DEVICE Part part_of(const StepTask& task, const Chunks& chunks) {
    const int64_t sample = divide(blockIdx.x, chunks.count);
    const int64_t begin = (static_cast<int64_t>(blockIdx.x) - sample * chunks.count) * chunks.size;
    const int64_t end = begin + chunks.size < task.shape.dim ? begin + chunks.size : task.shape.dim;
    return {sample, begin, end, kThreads * V};
}

// The partial results of a sample, of this thread.
ADVFAST_DEVICE double partial(const double* parts, const Chunks& chunks, int64_t sample) {
    return threadIdx.x < chunks.count ? parts[sample * chunks.count + threadIdx.x] : 0.0;
}

// Doubles only: the largest entry of each chunk.
template <int V> __global__ void __launch_bounds__(kThreads)
    largest_kernel(const StepTask task, const Scratch scratch) {
    const Part part = part_of<V>(task, scratch.chunks);
    double largest[1] = {0.0};
    for_grad<double, V, kAhead>(
        task, part, [](int, int64_t) {}, [&](int, int64_t, const double (&g)[V], int) { add_largest(g, largest[0]); });
    block_reduce(largest, reinterpret_cast<double*>(dynamic_shared()), Largest{});
    if (threadIdx.x == 0)
        scratch.largest[blockIdx.x] = largest[0];
}

template <class Real> ADVFAST_DEVICE Scaling<Real> near_one_of(const Scratch& scratch, int64_t sample, double* lanes) {
    if (sizeof(Real) == 4)
        return {};
    double largest[1] = {partial(scratch.largest, scratch.chunks, sample)};
    block_reduce(largest, lanes, Largest{});
    return to_one<Real>(largest[0]);
}

template <class Real, int V> __global__ void __launch_bounds__(kThreads)
    sum_kernel(const StepTask task, const Scratch scratch) {
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    const Part part = part_of<V>(task, scratch.chunks);
    const Scaling<Real> near_one = near_one_of<Real>(scratch, part.sample, lanes);
    double sums[2] = {0.0, 0.0};
    for_grad<Real, V, kAhead>(
        task, part, [](int, int64_t) {},
        [&](int, int64_t, const Real(&g)[V], int bad) {
            sums[1] += bad;
            add_grad(task.norm, near_one, g, sums[0]);
        });
    block_reduce(sums, lanes, Add{});
    if (threadIdx.x == 0) {
        scratch.sum[blockIdx.x] = sums[0];
        scratch.bad[blockIdx.x] = sums[1];
    }
    count_nonfinite(task, sums[1]);
}

template <class Real, int V> __global__ void __launch_bounds__(kThreads)
    move_kernel(const StepTask task, const Scratch scratch) {
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    const Part part = part_of<V>(task, scratch.chunks);
    Direction<Real> way{};
    if (task.grad) {
        const Scaling<Real> near_one = near_one_of<Real>(scratch, part.sample, lanes);
        double sums[2] = {partial(scratch.sum, scratch.chunks, part.sample),
                          partial(scratch.bad, scratch.chunks, part.sample)};
        block_reduce(sums, lanes, Add{});
        way = direction(task.norm, near_one, sums[0], sums[1]);
    }
    float* x = task.x + part.sample * task.shape.dim;
    const float* x0 = task.x0 + part.sample * task.shape.dim;
    double distance[1] = {0.0};
    float now[kAhead][V], centre[kAhead][V];
    if (way.moves)
        for_grad<Real, V, kAhead>(
            task, part,
            [&](int u, int64_t inside) {
                load_values(x + inside, now[u]);
                load_values(x0 + inside, centre[u]);
            },
            [&](int u, int64_t inside, const Real(&g)[V], int) {
                move(task, place<V>(task.shape, part.sample, inside), way.unit, g, now[u]);
                store_values(x + inside, now[u]);
                add_distance(task.norm, now[u], centre[u], distance[0]);
            });
    else
        for_vectors<V>(part, [&](int64_t inside) {
            load_values(x + inside, now[0]);
            load_values(x0 + inside, centre[0]);
            add_distance(task.norm, now[0], centre[0], distance[0]);
        });
    block_reduce(distance, lanes, Add{});
    if (threadIdx.x == 0)
        scratch.distance[blockIdx.x] = distance[0];
}

// l1: one block a sample.
__global__ void __launch_bounds__(kMostThreads, 1) threshold_kernel(const StepTask task, const Scratch scratch) {
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    const int64_t sample = blockIdx.x;
    const float* x = task.x + sample * task.shape.dim;
    const float* x0 = task.x0 + sample * task.shape.dim;
    double distance[1] = {partial(scratch.distance, scratch.chunks, sample)};
    block_reduce(distance, lanes, Add{});
    const Shrink shrink = shrink_of(task, sample, distance[0], lanes, [&](auto f) {
#pragma unroll 4
        for (int64_t i = threadIdx.x; i < task.shape.dim; i += blockDim.x)
            f(x[i] - x0[i]);
    });
    if (threadIdx.x == 0) {
        scratch.theta[sample] = shrink.theta;
        scratch.factor[sample] = shrink.shrinks ? shrink.factor : -1.0;
    }
}

template <int V> __global__ void __launch_bounds__(kThreads) finish_kernel(const StepTask task, const Scratch scratch) {
    double* lanes = reinterpret_cast<double*>(dynamic_shared());
    const Part part = part_of<V>(task, scratch.chunks);
    Shrink shrink{};
    if (task.norm == Norm::l2) {
        double distance[1] = {partial(scratch.distance, scratch.chunks, part.sample)};
        block_reduce(distance, lanes, Add{});
        shrink = shrink_of(task, part.sample, distance[0], lanes, [](auto) {});
    } else {
        shrink.theta = scratch.theta[part.sample];
        shrink.factor = scratch.factor[part.sample];
        shrink.shrinks = shrink.factor >= 0;
    }
    for_vectors<V>(part, [&](int64_t inside) {
        const Place<V> at = place<V>(task.shape, part.sample, inside);
        float x[V], x0[V];
        load_values(task.x + part.sample * task.shape.dim + inside, x);
        load_values(task.x0 + part.sample * task.shape.dim + inside, x0);
        finish(task, at, shrink, x, x0);
    });
}

// --- launches -------------------------------------------------------------------------------------------------------

constexpr int64_t kLaneBytes = kLanes * sizeof(double);

template <class Real, int V>
void in_one_block(const char* op, const StepTask& task, int64_t most_shared, cudaStream_t stream) {
    const int64_t dim = task.shape.dim, vectors = dim / V,
                  slots = kLaneBytes + dim * static_cast<int64_t>(sizeof(Real));
    const int64_t kept = 2 * dim * static_cast<int64_t>(sizeof(float));
    // More than half of the shared memory would leave one block alone with a multiprocessor.
    const bool keep = task.grad && slots + kept <= most_shared / 2;
    const int64_t most = dim > 16384 ? kMostThreads : kMostThreads / 2;
    const int64_t rounds = (vectors + most - 1) / most, threads = (vectors + rounds - 1) / rounds;
    launch(op, keep ? ball_kernel<Real, V, true> : ball_kernel<Real, V, false>, task.shape.batch,
           static_cast<int>((threads + kWarp - 1) / kWarp * kWarp), static_cast<size_t>(slots + (keep ? kept : 0)),
           stream, task);
}

template <class Real, int V>
void in_chunks(const char* op, const StepTask& task, const Scratch& scratch, cudaStream_t stream) {
    const int64_t blocks = task.shape.batch * scratch.chunks.count;
    if (task.grad) {
        if (sizeof(Real) == 8)
            launch(op, largest_kernel<V>, blocks, kThreads, kLaneBytes, stream, task, scratch);
        launch(op, sum_kernel<Real, V>, blocks, kThreads, kLaneBytes, stream, task, scratch);
    }
    launch(op, move_kernel<Real, V>, blocks, kThreads, kLaneBytes, stream, task, scratch);
    if (task.norm == Norm::l1)
        launch(op, threshold_kernel, task.shape.batch, kMostThreads, kLaneBytes, stream, task, scratch);
    launch(op, finish_kernel<V>, blocks, kThreads, kLaneBytes, stream, task, scratch);
}

template <class Real, int V>
void ball_step_as(const char* op, const StepTask& task, void* memory, int64_t most_shared, cudaStream_t stream) {
    if (kLaneBytes + task.shape.dim * static_cast<int64_t>(sizeof(Real)) <= most_shared)
        return in_one_block<Real, V>(op, task, most_shared, stream);
    if (!memory)
        throw std::invalid_argument(std::string(op) + ": scratch of pgd_scratch_bytes() bytes is needed, got null");
    Scratch scratch{};
    scratch.chunks = chunks_of(task.shape.dim);
    double* next = static_cast<double*>(memory);
    for (double** each : {&scratch.largest, &scratch.sum, &scratch.bad, &scratch.distance}) {
        *each = next;
        next += task.shape.batch * scratch.chunks.count;
    }
    scratch.theta = next;
    scratch.factor = next + task.shape.batch;
    in_chunks<Real, V>(op, task, scratch, stream);
}

} // namespace

void ball_step(const char* op, const StepTask& task, void* scratch, int device, cudaStream_t stream) {
    int most_shared = 0;
    check_cuda(op, cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    const bool wide = task.wide(true), real64 = task.grad && task.grad_dtype == DType::f64;
    if (wide && real64)
        ball_step_as<double, 4>(op, task, scratch, most_shared, stream);
    else if (wide)
        ball_step_as<float, 4>(op, task, scratch, most_shared, stream);
    else if (real64)
        ball_step_as<double, 1>(op, task, scratch, most_shared, stream);
    else
        ball_step_as<float, 1>(op, task, scratch, most_shared, stream);
}

int64_t pgd_scratch_bytes(const PgdStepArgs& args) {
    if (args.norm == Norm::linf)
        return 0;
    const int64_t count = chunks_of(args.channels * args.spatial).count;
    return args.batch * (4 * count + 2) * static_cast<int64_t>(sizeof(double));
}

} // namespace advfast

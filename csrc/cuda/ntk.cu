// The ntk family on the GPU: the chain and the two Gram matrices, nothing of size n^2 R S c in memory.
//
// A block takes a tile of 64 x 64 positions of the patch Gram matrix: four samples a side where a sample has up to 16
// positions, else one, and then tile by tile: the kernel is linear in that matrix, so each tile is used at once. It
// keeps the outputs of its samples in registers, and it alone writes them, in a fixed order of sums.
//
// Of the pixels of the layer's input, where they lie whole in the tile, the Gram matrix is taken once and summed over
// the taps (K^2 times less work than patches); elsewhere patches are gathered tap by tap.
//
// Tiles: 8 warps, (4 groups of 16 rows) x 2. Four samples a side read each gradient once for four partners; a larger
// tile would read less, but its outputs and the patch Gram matrix (32 + 32 registers a thread) would not fit. Chunks of
// 8 channels are whole sectors of 32 bytes. The chain has 73 to 97 KB of shared memory a block.

#include "mma.cuh"

namespace advfast {

namespace {

constexpr int kThreadsNtk = 256;
constexpr int kTile = 64;                               // rows and columns of a tile
constexpr int kDepth = 32, kStage = kDepth + 8;         // of a staged product, and its stride in shared memory
constexpr int kGramStride = kTile + 8;                  // of a tile in shared memory
constexpr int kChannels = 8;                            // of a chunk of the chain
constexpr int kReadouts = 16;                           // of a tile of the chain
constexpr int kStageFloats = 2 * kTile * kStage;        // two operands, or the Gram matrix of pixels
constexpr int kGramFloats = kTile * kGramStride;        // of the patch Gram matrix
constexpr size_t kPlaces = 2 * kTile * sizeof(int64_t); // where each row begins
static_assert(kStageFloats >= kGramFloats, "the pixels' Gram matrix lies where the operands were");

// Blocks on a multiprocessor, which bounds the registers: with 128 a thread the other precisions spill.
template <Precision P> constexpr int kBlocks = P == Precision::tf32 || P == Precision::bf16 ? 2 : 1;

struct Task {
    NtkArgs args;
    int64_t rows, columns;        // blocks
    int64_t readouts1, readouts2; // tiles of readouts (chain)
    bool shift, wide1, wide2;
};

// Tiles in groups of 8 rows, column by column, for the L2 cache.
ADVFAST_DEVICE void tile_of(const Task& task, int64_t block, int64_t& row, int64_t& column) {
    constexpr int64_t kGroup = 8;
    const int64_t area = kGroup * task.columns, first = block / area * kGroup, within = block % area;
    const int64_t height = task.rows - first < kGroup ? task.rows - first : kGroup;
    row = first + within % height;
    column = within / height;
}

// The rows of a side of a tile: `units` from `first` on, slot by slot, positions from p0 on.
struct Rows {
    const NtkSide* side;
    int64_t first, units; // of samples, or of (sample, readout)
    int64_t readouts;     // units a sample
    int64_t p0;
};

// The layer's input at a tap, -1: zero. `whole`: position p is pixel p.
template <int kSlot> ADVFAST_DEVICE int64_t input_place(const NtkArgs& args, const Rows& rows, int row, int64_t part,
                                                        int64_t tap, bool whole) {
    const NtkSide& side = *rows.side;
    const int64_t unit = rows.first + row / kSlot, p = rows.p0 + row % kSlot;
    const bool identity = whole || !side.taps;
    if (unit >= rows.units || p >= (identity ? side.pixels : side.positions))
        return -1;
    const int64_t pixel = identity ? p : side.taps[p * args.taps + tap];
    return pixel < 0 ? -1 : ((unit / rows.readouts * args.groups + part) * side.pixels + pixel) * args.e;
}
// A unit's gradient at the position of a row.
template <int kSlot>
ADVFAST_DEVICE int64_t gradient_place(const NtkArgs& args, const Rows& rows, int row, int64_t part) {
    const int64_t unit = rows.first + row / kSlot, p = rows.p0 + row % kSlot;
    if (unit >= rows.units || p >= rows.side->positions)
        return -1;
    return ((unit * args.groups + part) * rows.side->positions + p) * args.c;
}

struct Shared {
    int64_t* place; // [2][kTile]
    float* stage;   // [2][kTile][kStage], or the Gram matrix of pixels [kTile][kGramStride]
    float* gram;    // [kTile][kGramStride]
    ADVFAST_DEVICE explicit Shared(unsigned char* memory)
        : place(reinterpret_cast<int64_t*>(memory)), stage(reinterpret_cast<float*>(memory + kPlaces)),
          gram(stage + kStageFloats) {}
};

struct Warp {
    int row, column; // of its part of a tile
    ADVFAST_DEVICE Warp()
        : row(static_cast<int>(threadIdx.x) / kWarp % 4 * 16), column(static_cast<int>(threadIdx.x) / kWarp / 4 * 32) {}
};

// total += the products of the rows that begin at shared.place: a warp has 16 rows and 32 columns.
template <Precision P> ADVFAST_DEVICE void multiply_rows(float (&total)[4][4], const float* left, const float* right,
                                                         int64_t depth, const Shared& shared) {
    const Warp warp;
    const int k = static_cast<int>(threadIdx.x) % kDepth;
    for (int64_t first = 0; first < depth; first += kDepth) {
        for (int row = static_cast<int>(threadIdx.x) / kDepth; row < 2 * kTile; row += kThreadsNtk / kDepth) {
            const int64_t place = shared.place[row];
            const bool inside = place >= 0 && first + k < depth;
            const float* from = row < kTile ? left : right;
            shared.stage[row * kStage + k] = inside ? rounded<P>(from[place + first + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < kDepth; step += 16) {
            float a[8], b[4];
            load_rows(a, shared.stage + warp.row * kStage + step, kStage);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                load_columns(b, shared.stage + (kTile + warp.column + 8 * n) * kStage + step, kStage);
                multiply<P>(total[n], a, b);
            }
        }
        __syncthreads();
    }
}

// Stores a tile that lies in the warps' registers.
template <class F> ADVFAST_DEVICE void store_tile(float* to, const float (&tile)[4][4], F f) {
    const Warp warp;
    const Lane lane;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            to[(warp.row + lane.group + i / 2 * 8) * kGramStride + warp.column + 8 * n + 2 * lane.pair + i % 2] =
                f(tile[n][i]);
    }
}

// The patch Gram matrix of a tile, to shared.gram, as an operand of a product if kOperand.
template <Precision P, int kSlot, bool kOperand> ADVFAST_DEVICE void
patch_gram(const Task& task, const Rows& rows1, const Rows& rows2, int64_t part, const Shared& shared) {
    const NtkArgs& args = task.args;
    const auto finish = [](float v) { return kOperand ? rounded<P>(v) : v; };
    float total[4][4] = {};
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t tap = 0; tap < (task.shift ? 1 : args.taps); ++tap) {
        // Whoever still multiplies has read the places: multiply_rows ends with a barrier.
        if (thread < 2 * kTile)
            shared.place[thread] = thread < kTile
                                       ? input_place<kSlot>(args, rows1, thread, part, tap, task.shift)
                                       : input_place<kSlot>(args, rows2, thread - kTile, part, tap, task.shift);
        __syncthreads();
        multiply_rows<P>(total, args.left.x, args.right.x, args.e, shared);
    }
    if (!task.shift) {
        store_tile(shared.gram, total, finish);
        __syncthreads();
        return;
    }
    store_tile(shared.stage, total, [](float v) { return v; });
    __syncthreads();
    for (int at = thread; at < kTile * kTile; at += kThreadsNtk) {
        const int row = at / kTile, column = at % kTile, p = row % kSlot, q = column % kSlot;
        float sum = 0.0f;
        if (p < args.left.positions && q < args.right.positions) {
            for (int64_t tap = 0; tap < args.taps; ++tap) {
                const int32_t m = args.left.taps[p * args.taps + tap], n = args.right.taps[q * args.taps + tap];
                if (m >= 0 && n >= 0)
                    sum += shared.stage[(row - p + m) * kGramStride + column - q + n];
            }
        }
        shared.gram[row * kGramStride + column] = finish(sum);
    }
    __syncthreads();
}

// --- the chain ------------------------------------------------------------------------------------------------------

template <int kSlot> struct Gradients {
    static constexpr int kUnits = kTile / kSlot, kStride = kSlot + 8;
    static constexpr int kPlane = kUnits * kReadouts * kStride; // of a channel
    static constexpr int kFloats = kChannels * kPlane;
};

// A chunk of channels of the gradients of a tile's samples, to [channel][sample][readout][position].
template <Precision P, int kSlot> ADVFAST_DEVICE void load_gradients(const NtkArgs& args, const Rows& rows,
                                                                     int64_t readout, int64_t part, int64_t channel,
                                                                     bool wide, float* to) {
    using G = Gradients<kSlot>;
    const NtkSide& side = *rows.side;
    for (int at = static_cast<int>(threadIdx.x); at < G::kUnits * kReadouts * kSlot; at += kThreadsNtk) {
        const int p = at % kSlot, r = at / kSlot % kReadouts, unit = at / kSlot / kReadouts;
        const int64_t sample = rows.first + unit, position = rows.p0 + p;
        float values[kChannels] = {};
        if (sample < rows.units && readout + r < side.readouts && position < side.positions) {
            const int64_t row =
                ((sample * side.readouts + readout + r) * args.groups + part) * side.positions + position;
            const float* from = side.g + row * args.c + channel;
            if (wide && channel + kChannels <= args.c) {
                load_values(from, values);
            } else {
#pragma unroll
                for (int c = 0; c < kChannels; ++c)
                    if (channel + c < args.c)
                        values[c] = from[c];
            }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
            to[c * G::kPlane + (unit * kReadouts + r) * G::kStride + p] = rounded<P>(values[c]);
    }
}

// Theta[r, r'] = sum over p, c of G1[r, p, c] (sum over q of K[p, q] G2[r', q, c]). A warp has 16 rows p of the tile
// and every second channel; it computes the inner sum transposed, [r', p], which is then an operand as it is.
template <Precision P, int kSlot> __global__ void __launch_bounds__(kThreadsNtk, kBlocks<P>)
    chain_kernel(const Task task) {
    using G = Gradients<kSlot>;
    constexpr int kUnits = G::kUnits, kSteps = kSlot / 16;
    const NtkArgs& args = task.args;
    int64_t row, column;
    tile_of(task, blockIdx.x, row, column);
    const int64_t readout1 = row % task.readouts1 * kReadouts, readout2 = column % task.readouts2 * kReadouts;
    Rows rows1{&args.left, row / task.readouts1 * kUnits, args.left.n, 1, 0};
    Rows rows2{&args.right, column / task.readouts2 * kUnits, args.right.n, 1, 0};
    const int64_t last = rows2.first + kUnits < args.right.n ? rows2.first + kUnits : args.right.n;
    if (args.upper && rows1.first >= last)
        return;

    unsigned char* const memory = dynamic_shared();
    const Shared shared(memory);
    float* const left = shared.stage; // the gradients lie where the Gram matrices were
    float* const right = left + G::kFloats;
    const Warp warp;
    const Lane lane;
    const int mine = warp.row / kSlot * kReadouts * G::kStride + warp.row % kSlot; // sample and first position
    float total[kUnits][2][4] = {};
    for (int64_t part = 0; part < args.groups; ++part) {
        for (rows1.p0 = 0; rows1.p0 < args.left.positions; rows1.p0 += kSlot) {
            for (rows2.p0 = 0; rows2.p0 < args.right.positions; rows2.p0 += kSlot) {
                patch_gram<P, kSlot, true>(task, rows1, rows2, part, shared);
                float gram[kUnits][kSteps][2][4];
#pragma unroll
                for (int at = 0; at < kUnits * kSteps; ++at) {
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        load_columns(gram[at / kSteps][at % kSteps][half],
                                     shared.gram + (warp.row + 8 * half) * kGramStride + 16 * at, kGramStride);
                }
                __syncthreads();
                for (int64_t channel = 0; channel < args.c; channel += kChannels) {
                    load_gradients<P, kSlot>(args, rows1, readout1, part, channel, task.wide1, left);
                    load_gradients<P, kSlot>(args, rows2, readout2, part, channel, task.wide2, right);
                    __syncthreads();
#pragma unroll 1
                    for (int c = warp.column / 32; c < kChannels; c += 2) {
                        float outer[8];
                        load_rows(outer, left + c * G::kPlane + mine, G::kStride);
#pragma unroll
                        for (int j = 0; j < kUnits; ++j) {
                            float inner[2][4] = {}, b[4];
#pragma unroll
                            for (int step = 0; step < kSteps; ++step) {
                                float a[8];
                                load_rows(a, right + c * G::kPlane + j * kReadouts * G::kStride + 16 * step,
                                          G::kStride);
                                multiply<P>(inner[0], a, gram[j][step][0]);
                                multiply<P>(inner[1], a, gram[j][step][1]);
                            }
#pragma unroll
                            for (int half = 0; half < 2; ++half) {
                                chained<P>(b, inner[0], inner[1], half);
                                multiply<P>(total[j][half], outer, b);
                            }
                        }
                    }
                    __syncthreads();
                }
            }
        }
    }

    // Sums over the warps, in their order.
    float* const sums = shared.stage; // [8 warps][kUnits][kReadouts][kReadouts]
    const int number = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int r = lane.group + i % 4 / 2 * 8, other = i / 4 * 8 + 2 * lane.pair + i % 2;
            sums[((number * kUnits + j) * kReadouts + r) * kReadouts + other] = total[j][i / 4][i % 4];
        }
    }
    __syncthreads();
    constexpr int kPair = kReadouts * kReadouts;
    for (int at = static_cast<int>(threadIdx.x); at < kUnits * kUnits * kPair; at += kThreadsNtk) {
        const int other = at % kReadouts, r = at / kReadouts % kReadouts, j = at / kPair % kUnits;
        const int i = at / kPair / kUnits;
        const int64_t sample1 = rows1.first + i, sample2 = rows2.first + j;
        if (sample1 >= args.left.n || sample2 >= args.right.n || readout1 + r >= args.left.readouts ||
            readout2 + other >= args.right.readouts)
            continue;
        float sum = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int w = 0; w < kSteps; ++w)
                sum += sums[(((half * 4 + i * kSteps + w) * kUnits + j) * kReadouts + r) * kReadouts + other];
        }
        args.out[(sample1 * args.left.readouts + readout1 + r) * args.out_stride + sample2 * args.right.readouts +
                 readout2 + other] += sum;
    }
}

// --- two Gram matrices ----------------------------------------------------------------------------------------------

// Units are rows of `out`, (sample, readout): each has its slots in the tile, whatever the number of readouts.
template <Precision P, int kSlot> __global__ void __launch_bounds__(kThreadsNtk, kBlocks<P>)
    hadamard_kernel(const Task task) {
    constexpr int kUnits = kTile / kSlot;
    const NtkArgs& args = task.args;
    int64_t row, column;
    tile_of(task, blockIdx.x, row, column);
    const int64_t readouts1 = args.left.readouts, readouts2 = args.right.readouts;
    Rows rows1{&args.left, row * kUnits, args.left.n * readouts1, readouts1, 0};
    Rows rows2{&args.right, column * kUnits, args.right.n * readouts2, readouts2, 0};
    const int64_t end = rows2.first + kUnits < rows2.units ? rows2.first + kUnits : rows2.units;
    if (args.upper && rows1.first / readouts1 > (end - 1) / readouts2)
        return;

    const Shared shared(dynamic_shared());
    const Warp warp;
    const Lane lane;
    const int thread = static_cast<int>(threadIdx.x);
    float sum[2] = {}; // of 16 rows and twice 16 columns
    for (int64_t part = 0; part < args.groups; ++part) {
        for (rows1.p0 = 0; rows1.p0 < args.left.positions; rows1.p0 += kSlot) {
            for (rows2.p0 = 0; rows2.p0 < args.right.positions; rows2.p0 += kSlot) {
                patch_gram<P, kSlot, false>(task, rows1, rows2, part, shared);
                if (thread < 2 * kTile)
                    shared.place[thread] = thread < kTile ? gradient_place<kSlot>(args, rows1, thread, part)
                                                          : gradient_place<kSlot>(args, rows2, thread - kTile, part);
                __syncthreads();
                float products[4][4] = {};
                multiply_rows<P>(products, args.left.g, args.right.g, args.c, shared);
#pragma unroll
                for (int n = 0; n < 4; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float* gram = shared.gram + (warp.row + lane.group + i / 2 * 8) * kGramStride;
                        sum[n / 2] =
                            fmaf(products[n][i], gram[warp.column + 8 * n + 2 * lane.pair + i % 2], sum[n / 2]);
                    }
                }
                __syncthreads();
            }
        }
    }

    float* const sums = shared.stage; // [4][4] of 16 rows and columns
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        sum[half] = warp_reduce(sum[half], Add{});
        if (thread % kWarp == 0)
            sums[warp.row / 16 * 4 + warp.column / 16 + half] = sum[half];
    }
    __syncthreads();
    if (thread >= kUnits * kUnits)
        return;
    const int u = thread / kUnits, v = thread % kUnits;
    if (rows1.first + u >= rows1.units || rows2.first + v >= rows2.units)
        return;
    constexpr int kSteps = kSlot / 16;
    float all = 0.0f;
    for (int i = 0; i < kSteps * kSteps; ++i)
        all += sums[(u * kSteps + i / kSteps) * 4 + v * kSteps + i % kSteps];
    args.out[(rows1.first + u) * args.out_stride + rows2.first + v] += all;
}

// --- launches -------------------------------------------------------------------------------------------------------

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <Precision P, int kSlot> void launch_chain(const char* op, Task task, cudaStream_t stream) {
    using G = Gradients<kSlot>;
    constexpr size_t kFloats =
        2 * G::kFloats > kStageFloats + kGramFloats ? 2 * G::kFloats : kStageFloats + kGramFloats;
    task.readouts1 = ceil_div(task.args.left.readouts, kReadouts);
    task.readouts2 = ceil_div(task.args.right.readouts, kReadouts);
    task.rows = ceil_div(task.args.left.n, G::kUnits) * task.readouts1;
    task.columns = ceil_div(task.args.right.n, G::kUnits) * task.readouts2;
    launch(op, chain_kernel<P, kSlot>, task.rows * task.columns, kThreadsNtk, kPlaces + kFloats * sizeof(float), stream,
           task);
}
template <Precision P, int kSlot> void launch_hadamard(const char* op, Task task, cudaStream_t stream) {
    constexpr int kUnits = kTile / kSlot;
    task.rows = ceil_div(task.args.left.n * task.args.left.readouts, kUnits);
    task.columns = ceil_div(task.args.right.n * task.args.right.readouts, kUnits);
    launch(op, hadamard_kernel<P, kSlot>, task.rows * task.columns, kThreadsNtk,
           kPlaces + (kStageFloats + kGramFloats) * sizeof(float), stream, task);
}

template <bool kChain, Precision P> void launch_slot(const char* op, const Task& task, bool few, cudaStream_t stream) {
    if constexpr (kChain)
        few ? launch_chain<P, 16>(op, task, stream) : launch_chain<P, 64>(op, task, stream);
    else
        few ? launch_hadamard<P, 16>(op, task, stream) : launch_hadamard<P, 64>(op, task, stream);
}

template <bool kChain> void run(const char* op, const NtkArgs& args, int device, cudaStream_t stream) {
    const NtkSide &left = args.left, &right = args.right;
    if (left.n == 0 || right.n == 0 || left.readouts == 0 || right.readouts == 0)
        return;
    Task task{};
    task.args = args;
    const auto largest = [](int64_t a, int64_t b) { return a > b ? a : b; };
    const int64_t positions = largest(left.positions, right.positions);
    const bool few = positions <= 16;
    task.shift = left.taps && right.taps && args.taps > 1 &&
                 largest(positions, largest(left.pixels, right.pixels)) <= (few ? 16 : kTile);
    task.wide1 = args.c % 4 == 0 && aligned(left.g, 16);
    task.wide2 = args.c % 4 == 0 && aligned(right.g, 16);
    const DeviceGuard guard(op, device);
    switch (args.precision) {
    case Precision::fp32:
        return launch_slot<kChain, Precision::fp32>(op, task, few, stream);
    case Precision::tf32:
        return launch_slot<kChain, Precision::tf32>(op, task, few, stream);
    case Precision::bf16:
        return launch_slot<kChain, Precision::bf16>(op, task, few, stream);
    case Precision::bf16x3:
        return launch_slot<kChain, Precision::bf16x3>(op, task, few, stream);
    }
}

} // namespace

void ntk_chain_cuda(const NtkArgs& args, int device, void* stream) {
    run<true>("ntk_chain_", args, device, static_cast<cudaStream_t>(stream));
}
void ntk_hadamard_cuda(const NtkArgs& args, int device, void* stream) {
    run<false>("ntk_hadamard_", args, device, static_cast<cudaStream_t>(stream));
}

} // namespace advfast

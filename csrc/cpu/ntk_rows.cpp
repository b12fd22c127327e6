// Rows of the ntk family: for each sample and group, g^T [readouts * c, S] times patches [S, T * e], which are read
// from the input as they are packed. Compiled once for each instruction set (see isa.h).

#include "ntk_lanes.h"

#include <cstring>

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// A block of gradients stays in the second-level cache, a panel of patches in the first.
constexpr int64_t kBlockRows = 192;
static_assert(kNtkRowsScratch >= (kBlockRows + kPanel) * kDepth, "the scratch is too small for the blocks");

struct Layer {
    const NtkArgs& args;
    const float *x, *g; // of one sample and group
    float* out;
    int64_t r_in, r_out; // from one readout to the next
    int64_t columns;     // T * e

    Layer(const NtkArgs& a, int64_t unit) : args(a), columns(a.taps * a.e) {
        const int64_t sample = unit / a.groups, group = unit % a.groups, positions = a.left.positions;
        x = a.left.x + unit * a.left.pixels * a.e;
        g = a.left.g + (sample * a.left.readouts * a.groups + group) * positions * a.c;
        out = a.out + (sample * a.left.readouts * a.groups + group) * a.c * columns;
        r_in = a.groups * positions * a.c;
        r_out = a.groups * a.c * columns;
    }
    const float* gradient(int64_t row) const { return g + row / args.c * r_in + row % args.c; }
    float* result(int64_t row) const { return out + row / args.c * r_out + row % args.c * columns; }

    // [depth][kPanel] of patches, from position `first` and column `column` on.
    void pack(int64_t first, int64_t depth, int64_t column, float* panel) const {
        for (int64_t lane = 0; lane < kPanel;) {
            const int64_t t = (column + lane) / args.e, from = (column + lane) % args.e;
            const bool inside = t < args.taps;
            int64_t run = inside ? args.e - from : kPanel; // columns of the same tap
            if (run > kPanel - lane)
                run = kPanel - lane;
            for (int64_t k = 0; k < depth; ++k) {
                const int64_t pixel = !inside          ? -1
                                      : args.left.taps ? args.left.taps[(first + k) * args.taps + t]
                                                       : first + k;
                const float* numbers = x + pixel * args.e + from;
                float* to = panel + k * kPanel + lane;
                if (run == kPanel)
                    for (int v = 0; v < kVectors; ++v)
                        store(to + v * kLanes, pixel < 0 ? all(0.0f) : load(numbers + v * kLanes));
                else
                    for (int64_t i = 0; i < run; ++i)
                        to[i] = pixel < 0 ? 0.0f : numbers[i];
            }
            lane += run;
        }
    }
};

// Gradients [depth][M] of M rows, for blocks of rows one after the other.
struct PackRows {
    const Layer& layer;
    int64_t begin, first, depth; // row and position of the first number
    float* to;

    template <int M> ADVFAST_INLINE void rows(int64_t row) {
        const int64_t c = layer.args.c;
        float* block = to + (row - begin) * depth;
        if (row / c == (row + M - 1) / c) {
            const float* from = layer.gradient(row) + first * c;
            for (int64_t k = 0; k < depth; ++k)
                std::memcpy(block + k * M, from + k * c, M * sizeof(float));
            return;
        }
        for (int m = 0; m < M; ++m) {
            const float* from = layer.gradient(row + m) + first * c;
            for (int64_t k = 0; k < depth; ++k)
                block[k * M + m] = from[k * c];
        }
    }
};

struct Rows {
    const Layer& layer;
    const float *packed, *panel;
    int64_t begin, depth, column;
    bool add;

    template <int M> ADVFAST_INLINE void rows(int64_t row) {
        Lanes sums[M][kVectors];
        ADVFAST_UNROLL
        for (int m = 0; m < M; ++m)
            ADVFAST_PREFETCH(layer.result(row + m) + column);
        multiply<M>(packed + (row - begin) * depth, 1, M, panel, depth, sums);
        const int64_t columns = layer.columns - column;
        if (columns >= kPanel) {
            ADVFAST_UNROLL
            for (int m = 0; m < M; ++m) {
                float* to = layer.result(row + m) + column;
                ADVFAST_UNROLL
                for (int v = 0; v < kVectors; ++v)
                    store(to + v * kLanes, add ? load(to + v * kLanes) + sums[m][v] : sums[m][v]);
            }
            return;
        }
        ADVFAST_UNROLL
        for (int m = 0; m < M; ++m) {
            float numbers[kPanel];
            ADVFAST_UNROLL
            for (int v = 0; v < kVectors; ++v)
                store(numbers + v * kLanes, sums[m][v]);
            float* to = layer.result(row + m) + column;
            for (int64_t i = 0; i < columns; ++i)
                to[i] = add ? to[i] + numbers[i] : numbers[i];
        }
    }
};

} // namespace

void ntk_rows(const NtkArgs& args, Range units, float* scratch) {
    float *packed = scratch, *panel = scratch + kBlockRows * kDepth;
    const int64_t positions = args.left.positions, rows = args.left.readouts * args.c;
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const Layer layer(args, unit);
        for (int64_t first = 0; first == 0 || first < positions; first += kDepth) {
            const int64_t depth = positions - first < kDepth ? positions - first : kDepth;
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
                PackRows pack{layer, begin, first, depth, packed};
                in_blocks(begin, end, pack);
                for (int64_t column = 0; column < layer.columns; column += kPanel) {
                    layer.pack(first, depth, column, panel);
                    Rows multiply_rows{layer, packed, panel, begin, depth, column, first > 0};
                    in_blocks(begin, end, multiply_rows);
                }
            }
        }
    }
}

} // namespace ADVFAST_ISA
} // namespace advfast

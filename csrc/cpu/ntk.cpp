// Pairs of samples of the ntk family: the patch Gram K and, with it, the kernel by the chain K G2, then G1 times that,
// or by the gradients' Gram times K entry by entry. Compiled once for each instruction set (see isa.h).
//
// Nothing larger than K is stored: products with K live for kNtkReadouts x kNtkPositions x kPanel channels, entries of
// the gradients' Gram in registers.

#include "ntk_lanes.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
// Numbers of a row that are packed at once: their panel stays in the first-level cache.
constexpr int64_t kColumnDepth = 64;
constexpr int32_t kScattered = INT32_MIN;
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// One vector of each of A rows of g times one of each of B rows of t.
template <int A, int B>
ADVFAST_INLINE void multiply_rows(const float* g, int64_t g_step, const float* t, int64_t t_step, Lanes (&sums)[A][B]) {
    Lanes right[B];
    ADVFAST_UNROLL
    for (int j = 0; j < B; ++j)
        right[j] = load(t + j * t_step);
    ADVFAST_UNROLL
    for (int i = 0; i < A; ++i) {
        const Lanes left = load(g + i * g_step);
        ADVFAST_UNROLL
        for (int j = 0; j < B; ++j)
            sums[i][j] = multiply_add(left, right[j], sums[i][j]);
    }
}

// Adds the dot products of A rows of g and B rows of t, each still kLanes parts.
template <int A, int B> inline void dots(const float* g, int64_t g_step, const float* t, int64_t t_step, int64_t length,
                                         float* sums, int64_t sums_step) {
    // Enough sums that no multiplication waits for the one before it.
    constexpr int kAtOnce = A * B >= 8 ? 1 : A * B >= 4 ? 2 : 4;
    Lanes found[kAtOnce][A][B];
    ADVFAST_UNROLL
    for (int u = 0; u < kAtOnce; ++u)
        ADVFAST_UNROLL
    for (int i = 0; i < A; ++i)
        ADVFAST_UNROLL
    for (int j = 0; j < B; ++j)
        found[u][i][j] = all(0.0f);
    int64_t k = 0;
    for (; k + kAtOnce * kLanes <= length; k += kAtOnce * kLanes)
        ADVFAST_UNROLL
    for (int u = 0; u < kAtOnce; ++u)
        multiply_rows<A, B>(g + k + u * kLanes, g_step, t + k + u * kLanes, t_step, found[u]);
    for (; k < length; k += kLanes)
        multiply_rows<A, B>(g + k, g_step, t + k, t_step, found[0]);
    ADVFAST_UNROLL
    for (int i = 0; i < A; ++i)
        ADVFAST_UNROLL
    for (int j = 0; j < B; ++j) {
        Lanes sum = found[0][i][j];
        ADVFAST_UNROLL
        for (int u = 1; u < kAtOnce; ++u)
            sum = sum + found[u][i][j];
        float* to = sums + i * sums_step + j * kLanes;
        store(to, load(to) + sum);
    }
}

constexpr int kLeftDots = 5, kRightDots = 2;
using Dots = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t);
constexpr Dots kDots[kLeftDots][kRightDots] = {{dots<1, 1>, dots<1, 2>},
                                               {dots<2, 1>, dots<2, 2>},
                                               {dots<3, 1>, dots<3, 2>},
                                               {dots<4, 1>, dots<4, 2>},
                                               {dots<5, 1>, dots<5, 2>}};

// A block of rows (readout, position) of the gradients' Gram, each multiplied by its row of K and added to its readout.
struct Weighted {
    const float *a, *panel;
    int64_t row_step, depth;
    const float* kernel; // [position][kernel_step], from the column that goes with the panel's first
    int64_t kernel_step, positions, first_row;
    float* sums; // [readout][sums_step], from the panel's first column
    int64_t sums_step;

    template <int M> ADVFAST_INLINE void rows(int64_t first) {
        Lanes found[M][kVectors];
        multiply<M>(a + first * row_step, row_step, 1, panel, depth, found);
        int64_t readout = (first_row + first) / positions, position = (first_row + first) % positions;
        ADVFAST_UNROLL
        for (int m = 0; m < M; ++m) {
            ADVFAST_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                float* to = sums + readout * sums_step + v * kLanes;
                store(to, multiply_add(found[m][v], load(kernel + position * kernel_step + v * kLanes), load(to)));
            }
            if (++position == positions) {
                position = 0;
                ++readout;
            }
        }
    }
};

struct Pairs {
    const NtkArgs& args;
    const NtkPlan& plan;
    const NtkPacked& packed;
    float *own, *kernel, *pixels; // of the order; K; P from its first pixel's row

    Pairs(const NtkArgs& a, const NtkPlan& p, const NtkPacked& blocks, float* scratch)
        : args(a), plan(p), packed(blocks), own(scratch) {
        pixels = scratch + p.scratch - (p.shift ? (p.rows1 + 1) * p.pixel_step + 2 * kPanel : 0);
        kernel = pixels - a.left.positions * p.kernel_step;
        if (!p.shift)
            return;
        // Vectors may begin before the first row, which is zeros, and end behind the last.
        for (int64_t i = 0; i < kPanel + p.pixel_step; ++i)
            pixels[i] = 0.0f;
        for (int64_t i = 0; i < kPanel; ++i)
            pixels[kPanel + (p.rows1 + 1) * p.pixel_step + i] = 0.0f;
        pixels += kPanel + p.pixel_step;
    }

    const float* left_patches(int64_t sample, int64_t group) const {
        const int64_t size = plan.rows1 * plan.depth;
        if (plan.left_patches)
            return packed.left_patches + (sample - packed.left_first) * plan.left_patches + group * size;
        return args.left.x + (sample * args.groups + group) * size;
    }

    void patch_gram(NtkPair pair, int64_t group) {
        const int64_t panels = panels_of(plan.rows2), depth = plan.depth;
        const float* left = left_patches(pair.left, group);
        const float* right = packed.right_patches + (pair.right - packed.right_first) * plan.right_patches +
                             group * panels * kPanel * depth;
        float* to = plan.shift ? pixels : kernel;
        const int64_t to_step = plan.shift ? plan.pixel_step : plan.kernel_step;
        for (int64_t k = 0; k == 0 || k < depth; k += kDepth)
            for (int64_t panel = 0; panel < panels; ++panel) {
                Product product{left + k,
                                depth,
                                1,
                                right + (panel * depth + k) * kPanel,
                                least(kDepth, depth - k),
                                to + panel * kPanel,
                                to_step,
                                k > 0};
                in_blocks(0, plan.rows1, product);
            }
        if (plan.shift)
            shifted_sums();
    }

    // K[p][q] = sum over t of P[taps1[p][t]][taps2[q][t]], P the Gram of the pixels with a row and a column of zeros
    // for padding, for kLanes neighbouring q at once. Where their pixels are neighbours too, as a convolution's are,
    // that is one load and a mask.
    void shifted_sums() {
        const int64_t positions = args.right.positions, taps = args.taps, vectors = (positions + kLanes - 1) / kLanes;
        for (int64_t row = 0; row < plan.rows1; ++row)
            pixels[row * plan.pixel_step + args.right.pixels] = 0.0f;
        for (int64_t p = 0; p < args.left.positions; ++p)
            for (int64_t v = 0; v < vectors; ++v) {
                Lanes sum = all(0.0f);
                for (int64_t t = 0; t < taps; ++t) {
                    const int64_t at = v * taps + t;
                    const float* row = pixels + args.left.taps[p * taps + t] * plan.pixel_step;
                    if (plan.starts[at] != kScattered) {
                        sum = sum + masked(load(row + plan.starts[at]), plan.set + at * kLanes);
                        continue;
                    }
                    float gathered[kLanes];
                    for (int lane = 0; lane < kLanes; ++lane)
                        gathered[lane] = row[plan.columns[at * kLanes + lane]];
                    sum = sum + load(gathered);
                }
                store(kernel + p * plan.kernel_step + v * kLanes, sum);
            }
    }

    void write_patch_gram(NtkPair pair) {
        const int64_t rows = args.left.positions, columns = args.right.positions;
        for (int64_t group = 0; group < args.groups; ++group) {
            patch_gram(pair, group);
            float* to = args.out + ((pair.left * args.right.n + pair.right) * args.groups + group) * rows * columns;
            for (int64_t p = 0; p < rows; ++p)
                for (int64_t q = 0; q < columns; ++q)
                    to[p * columns + q] = kernel[p * plan.kernel_step + q];
        }
    }

    float* out(NtkPair pair) const {
        return args.out + pair.left * args.left.readouts * args.out_stride + pair.right * args.right.readouts;
    }

    void chain(NtkPair pair) {
        const int64_t readouts1 = args.left.readouts, readouts2 = args.right.readouts, panels = panels_of(args.c);
        const int64_t left_size = args.left.positions * kPanel, right_size = args.right.positions * kPanel;
        float *sums = own, *products = own + readouts1 * readouts2 * kLanes;
        for (int64_t i = 0; i < readouts1 * readouts2 * kLanes; ++i)
            sums[i] = 0.0f;
        const float* left = packed.left_grads + (pair.left - packed.left_first) * plan.left_grads;
        const float* right = packed.right_grads + (pair.right - packed.right_first) * plan.right_grads;
        for (int64_t group = 0; group < args.groups; ++group) {
            patch_gram(pair, group);
            for (int64_t panel = 0; panel < panels; ++panel) {
                const float* g1 = left + (group * panels + panel) * readouts1 * left_size;
                const float* g2 = right + (group * panels + panel) * readouts2 * right_size;
                for (int64_t p = 0; p < args.left.positions; p += kNtkPositions)
                    for (int64_t s = 0; s < readouts2; s += kNtkReadouts) {
                        const int64_t positions = least(kNtkPositions, args.left.positions - p);
                        const int64_t readouts = least(kNtkReadouts, readouts2 - s);
                        multiply_by_kernel(g2 + s * right_size, readouts, p, positions, products);
                        multiply_by_left(g1 + p * kPanel, products, readouts, positions, sums + s * kLanes);
                    }
            }
        }
        float* to = out(pair);
        for (int64_t r = 0; r < readouts1; ++r)
            for (int64_t s = 0; s < readouts2; ++s) {
                const float* parts = sums + (r * readouts2 + s) * kLanes;
                float sum = 0.0f;
                for (int lane = 0; lane < kLanes; ++lane)
                    sum += parts[lane];
                to[r * args.out_stride + s] += sum;
            }
    }

    // products[readout][position][kPanel channels] of some rows of K.
    void multiply_by_kernel(const float* g2, int64_t readouts, int64_t first, int64_t positions, float* products) {
        const int64_t depth = args.right.positions;
        for (int64_t s = 0; s < readouts; ++s)
            for (int64_t k = 0; k < depth; k += kDepth) {
                Product product{kernel + first * plan.kernel_step + k,
                                plan.kernel_step,
                                1,
                                g2 + (s * depth + k) * kPanel,
                                least(kDepth, depth - k),
                                products + s * kNtkPositions * kPanel,
                                kPanel,
                                k > 0};
                in_blocks(0, positions, product);
            }
    }

    void multiply_by_left(const float* g1, const float* products, int64_t readouts, int64_t positions, float* sums) {
        const int64_t g_step = args.left.positions * kPanel, t_step = kNtkPositions * kPanel;
        const int64_t sums_step = args.right.readouts * kLanes;
        for (int64_t r = 0; r < args.left.readouts; r += kLeftDots)
            for (int64_t s = 0; s < readouts; s += kRightDots) {
                const int64_t rows = least(kLeftDots, args.left.readouts - r),
                              columns = least(kRightDots, readouts - s);
                kDots[rows - 1][columns - 1](g1 + r * g_step, g_step, products + s * t_step, t_step, positions * kPanel,
                                             sums + r * sums_step + s * kLanes, sums_step);
            }
    }

    void hadamard(NtkPair pair) {
        const int64_t positions1 = args.left.positions, positions2 = args.right.positions, c = args.c;
        const int64_t readouts1 = args.left.readouts, readouts2 = args.right.readouts;
        const int64_t panels = panels_of(readouts2 * positions2), sums_step = panels * kPanel;
        for (int64_t i = 0; i < readouts1 * sums_step; ++i)
            own[i] = 0.0f;
        const float* right = packed.right_grads + (pair.right - packed.right_first) * plan.right_grads;
        // Rows of one group are those of all readouts if there is no other group, else those of one.
        const int64_t parts = args.groups == 1 ? 1 : readouts1, rows = readouts1 / parts * positions1;
        for (int64_t group = 0; group < args.groups; ++group) {
            patch_gram(pair, group);
            for (int64_t p = 0; p < positions1; ++p)
                for (int64_t q = 0; q < kPanel; ++q)
                    kernel[p * plan.kernel_step + positions2 + q] = kernel[p * plan.kernel_step + q % positions2];
            for (int64_t part = 0; part < parts; ++part) {
                const float* left =
                    args.left.g + ((pair.left * readouts1 + part) * args.groups + group) * positions1 * c;
                for (int64_t k = 0; k < c; k += kDepth)
                    for (int64_t row = 0; row < rows; row += kHadamardRows)
                        for (int64_t panel = 0; panel < panels; ++panel) {
                            const int64_t column = panel * kPanel;
                            Weighted weighted{left + k,
                                              right + ((group * panels + panel) * c + k) * kPanel,
                                              c,
                                              least(kDepth, c - k),
                                              kernel + column % positions2,
                                              plan.kernel_step,
                                              positions1,
                                              part * positions1,
                                              own + column,
                                              sums_step};
                            in_blocks(row, least(row + kHadamardRows, rows), weighted);
                        }
            }
        }
        float* to = out(pair);
        for (int64_t r = 0; r < readouts1; ++r)
            for (int64_t s = 0; s < readouts2; ++s) {
                const float* parts_of = own + r * sums_step + s * positions2;
                float sum = 0.0f;
                for (int64_t q = 0; q < positions2; ++q)
                    sum += parts_of[q];
                to[r * args.out_stride + s] += sum;
            }
    }
    // A block of kHadamardRows x kDepth gradients stays in the second-level cache.
    static constexpr int64_t kHadamardRows = 96;
};

// Row `row` of a panel's columns: numbers k of it, kPanel apart; null: zeros.
inline void put_column(const float* from, int64_t numbers, float* to) {
    if (from)
        for (int64_t k = 0; k < numbers; ++k)
            to[k * kPanel] = from[k];
    else
        for (int64_t k = 0; k < numbers; ++k)
            to[k * kPanel] = 0.0f;
}

// Rows of patches, or of pixels, of one sample: [group][row][depth] on the left, [group][panel of rows][depth][kPanel]
// on the right.
void pack_patches(const NtkArgs& args, const NtkPlan& plan, bool right, int64_t sample, float* to) {
    const NtkSide& side = right ? args.right : args.left;
    const bool pixels = plan.shift || !side.taps;
    const int64_t rows = right ? plan.rows2 : plan.rows1, taps = pixels ? 1 : args.taps, e = args.e;
    for (int64_t group = 0; group < args.groups; ++group) {
        const float* x = side.x + (sample * args.groups + group) * side.pixels * e;
        const auto at = [&](int64_t row, int64_t t) -> const float* {
            const int64_t pixel = row >= rows ? -1 : pixels ? row : side.taps[row * taps + t];
            return pixel < 0 ? nullptr : x + pixel * e;
        };
        if (!right) {
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t t = 0; t < taps; ++t, to += e) {
                    const float* from = at(row, t);
                    for (int64_t k = 0; k < e; ++k)
                        to[k] = from ? from[k] : 0.0f;
                }
            continue;
        }
        for (int64_t panel = 0; panel < panels_of(rows); ++panel)
            for (int64_t t = 0; t < taps; ++t)
                for (int64_t k = 0; k < e; k += kColumnDepth) {
                    const int64_t numbers = least(kColumnDepth, e - k);
                    for (int64_t lane = 0; lane < kPanel; ++lane) {
                        const float* from = at(panel * kPanel + lane, t);
                        put_column(from ? from + k : nullptr, numbers, to + lane);
                    }
                    to += numbers * kPanel;
                }
    }
}

// [group][panel of channels][readout][position][kPanel]
void pack_channels(const NtkArgs& args, const NtkSide& side, int64_t sample, float* to) {
    const int64_t c = args.c, whole = c / kPanel, panels = panels_of(c), step = side.readouts * side.positions * kPanel;
    const float* from = side.g + sample * side.readouts * args.groups * side.positions * c;
    for (int64_t r = 0; r < side.readouts; ++r)
        for (int64_t group = 0; group < args.groups; ++group)
            for (int64_t p = 0; p < side.positions; ++p, from += c) {
                float* at = to + group * panels * step + (r * side.positions + p) * kPanel;
                for (int64_t panel = 0; panel < whole; ++panel)
                    for (int v = 0; v < kVectors; ++v)
                        store(at + panel * step + v * kLanes, load(from + panel * kPanel + v * kLanes));
                if (whole < panels)
                    for (int64_t k = 0; k < kPanel; ++k)
                        at[whole * step + k] = whole * kPanel + k < c ? from[whole * kPanel + k] : 0.0f;
            }
}

// [group][panel of (readout, position)][c][kPanel]
void pack_positions(const NtkArgs& args, const NtkSide& side, int64_t sample, float* to) {
    const int64_t c = args.c, columns = side.readouts * side.positions;
    const float* from = side.g + sample * args.groups * columns * c;
    for (int64_t group = 0; group < args.groups; ++group)
        for (int64_t panel = 0; panel < panels_of(columns); ++panel)
            for (int64_t k = 0; k < c; k += kColumnDepth) {
                const int64_t numbers = least(kColumnDepth, c - k);
                for (int64_t lane = 0; lane < kPanel; ++lane) {
                    const int64_t column = panel * kPanel + lane, r = column / side.positions;
                    const int64_t row = (r * args.groups + group) * side.positions + column % side.positions;
                    put_column(column < columns ? from + row * c + k : nullptr, numbers, to + lane);
                }
                to += numbers * kPanel;
            }
}

} // namespace

int64_t ntk_lanes() { return kLanes; }

// For each vector of right positions and each tap: the pixels (padding: the column of zeros), the pixel that the first
// would have if they were neighbours, and which are not padding.
void ntk_shifts(const NtkArgs& args, int32_t* columns, int32_t* starts, int32_t* set) {
    const NtkSide& side = args.right;
    for (int64_t v = 0; v < (side.positions + kLanes - 1) / kLanes; ++v)
        for (int64_t t = 0; t < args.taps; ++t) {
            int32_t start = kScattered;
            bool found = false, neighbours = true;
            for (int lane = 0; lane < kLanes; ++lane) {
                const int64_t q = v * kLanes + lane;
                const int32_t pixel = q < side.positions ? side.taps[q * args.taps + t] : -1;
                *columns++ = pixel < 0 ? static_cast<int32_t>(side.pixels) : pixel;
                *set++ = pixel < 0 ? 0 : -1;
                if (pixel < 0)
                    continue;
                neighbours = neighbours && (!found || pixel - lane == start);
                start = pixel - lane;
                found = true;
            }
            *starts++ = !neighbours ? kScattered : found ? start : 0;
        }
}

void ntk_pack(const NtkArgs& args, const NtkPlan& plan, bool right, int64_t sample, float* patches, float* grads) {
    if (right || plan.left_patches)
        pack_patches(args, plan, right, sample, patches);
    if (plan.order == NtkOrder::chain)
        pack_channels(args, right ? args.right : args.left, sample, grads);
    else if (plan.order == NtkOrder::hadamard && right)
        pack_positions(args, args.right, sample, grads);
}

void ntk_pairs(const NtkArgs& args, const NtkPlan& plan, const NtkPacked& packed, const NtkPair* pairs, int64_t count,
               float* scratch) {
    Pairs work(args, plan, packed, scratch);
    for (int64_t i = 0; i < count; ++i)
        if (plan.order == NtkOrder::patch_gram)
            work.write_patch_gram(pairs[i]);
        else if (plan.order == NtkOrder::chain)
            work.chain(pairs[i]);
        else
            work.hadamard(pairs[i]);
}

} // namespace ADVFAST_ISA
} // namespace advfast

// Gradient of a convolution with respect to its input, for few input channels. Compiled once for each instruction set
// (see isa.h).
//
// For one row of the output: column k = (ci, kh, kw) of position ow is sum over co of weight[co][k] * grad[co][ow], and
// belongs to pixel (oh * sh + kh - ph, ow * sw + kw - pw). Columns are made for kPositions neighbouring ow and kColumns
// k at once, in registers. They are added to a padded image whose rows are split by the column modulo sw, so that
// neighbouring ow are neighbours there too.

#include "isa.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

constexpr int kColumns = 8;
constexpr int kPositions = kConvPositions;

// Compilers do not keep arrays of sums in registers by themselves.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
#define ADVFAST_UNROLL _Pragma("GCC unroll 16")
#else
struct Lanes {
    float v[kLanes];
    Lanes& operator+=(const Lanes& other) {
        for (int i = 0; i < kLanes; ++i)
            v[i] += other.v[i];
        return *this;
    }
    friend Lanes operator*(float a, Lanes b) {
        for (int i = 0; i < kLanes; ++i)
            b.v[i] *= a;
        return b;
    }
};
#define ADVFAST_UNROLL
#endif
inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, const Lanes& lanes) { *reinterpret_cast<Lanes*>(to) = lanes; }

struct Row {
    const float* grad;    // [co][kPositions], zeros behind the last position
    const float* weights; // [co][kColumns]
    int64_t outputs;
};

// sums[k][ow] for kColumns k. As many at once as fit into the registers.
inline void multiply(const Row& row, float sums[kColumns][kPositions]) {
    constexpr int kVectors = kPositions / kLanes, kAtOnce = kColumns / (kVectors > 2 ? 4 : kVectors);
    for (int first = 0; first < kColumns; first += kAtOnce) {
        Lanes totals[kAtOnce][kVectors] = {};
        for (int64_t co = 0; co < row.outputs; ++co) {
            const float* grad = row.grad + co * kPositions;
            const float* weights = row.weights + co * kColumns + first;
            ADVFAST_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const Lanes part = load(grad + v * kLanes);
                ADVFAST_UNROLL
                for (int k = 0; k < kAtOnce; ++k)
                    totals[k][v] += weights[k] * part;
            }
        }
        ADVFAST_UNROLL
        for (int k = 0; k < kAtOnce; ++k)
            ADVFAST_UNROLL
        for (int v = 0; v < kVectors; ++v)
            store(&sums[first + k][v * kLanes], totals[k][v]);
    }
}

struct Image {
    const ConvInputGradArgs& args;
    int64_t columns, blocks; // k, and groups of kColumns of them
    int64_t rows, phase;     // of the padded image; floats of a phase of a row
    const float* weights;    // [blocks][co][kColumns]
    float* padded;           // [ci][rows][stride_w][phase]
    float* packed;           // [co][kPositions]

    Image(const ConvInputGradArgs& a, float* scratch)
        : args(a), columns(a.inputs * a.kernel_h * a.kernel_w), blocks((columns + kColumns - 1) / kColumns) {
        rows = conv_padded_rows(a);
        phase = conv_phase(a);
        float* packed_weights = scratch;
        weights = packed_weights;
        padded = packed_weights + blocks * kColumns * a.outputs;
        packed = padded + a.inputs * rows * a.stride_w * phase;
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t co = 0; co < a.outputs; ++co)
                for (int64_t k = 0; k < kColumns; ++k) {
                    const int64_t column = block * kColumns + k;
                    packed_weights[(block * a.outputs + co) * kColumns + k] =
                        column < columns ? a.weight[co * columns + column] : 0.0f;
                }
    }

    void pack(int64_t sample, int64_t oh, int64_t ow, int64_t n) {
        const int64_t positions = args.out_h * args.out_w, at = oh * args.out_w + ow;
        const float* grad = args.grad + sample * args.outputs * positions;
        for (int64_t co = 0; co < args.outputs; ++co) {
            float* to = packed + co * kPositions;
            if (args.grad_layout == Layout::nchw)
                for (int64_t i = 0; i < n; ++i)
                    to[i] = grad[co * positions + at + i];
            else
                for (int64_t i = 0; i < n; ++i)
                    to[i] = grad[(at + i) * args.outputs + co];
            for (int64_t i = n; i < kPositions; ++i)
                to[i] = 0.0f;
        }
    }

    void add(int64_t block, const float sums[kColumns][kPositions], int64_t oh, int64_t ow) {
        const int64_t in_channel = args.kernel_h * args.kernel_w;
        for (int64_t k = 0; k < kColumns; ++k) {
            const int64_t column = block * kColumns + k;
            if (column >= columns)
                return;
            const int64_t ci = column / in_channel, kh = column % in_channel / args.kernel_w;
            const int64_t kw = column % args.kernel_w;
            float* to = padded + ((ci * rows + oh * args.stride_h + kh) * args.stride_w + kw % args.stride_w) * phase +
                        ow + kw / args.stride_w;
            // Also the zeros behind the last position: a phase has room for them.
            for (int i = 0; i < kPositions; i += kLanes) {
                Lanes part = load(to + i);
                part += load(&sums[k][i]);
                store(to + i, part);
            }
        }
    }

    void unpad(int64_t sample) {
        const bool nchw = args.layout == Layout::nchw;
        const int64_t pixels = args.height * args.width;
        float* out = args.out + sample * args.inputs * pixels;
        for (int64_t ci = 0; ci < args.inputs; ++ci)
            for (int64_t h = 0; h < args.height; ++h) {
                const float* from = padded + (ci * rows + h + args.pad_h) * args.stride_w * phase;
                float* to = out + (nchw ? ci * pixels + h * args.width : h * args.width * args.inputs + ci);
                const int64_t step = nchw ? 1 : args.inputs;
                int64_t part = args.pad_w % args.stride_w, at = args.pad_w / args.stride_w;
                for (int64_t w = 0; w < args.width; ++w) {
                    to[w * step] = from[part * phase + at];
                    if (++part == args.stride_w) {
                        part = 0;
                        ++at;
                    }
                }
            }
    }

    void run(int64_t sample) {
        const int64_t size = args.inputs * rows * args.stride_w * phase;
        for (int64_t i = 0; i < size; ++i)
            padded[i] = 0.0f;
        float sums[kColumns][kPositions];
        for (int64_t oh = 0; oh < args.out_h; ++oh)
            for (int64_t ow = 0; ow < args.out_w; ow += kPositions) {
                const int64_t left = args.out_w - ow;
                pack(sample, oh, ow, left < kPositions ? left : kPositions);
                for (int64_t block = 0; block < blocks; ++block) {
                    multiply({packed, weights + block * args.outputs * kColumns, args.outputs}, sums);
                    add(block, sums, oh, ow);
                }
            }
        unpad(sample);
    }
};

} // namespace

void conv_input_grad(const ConvInputGradArgs& args, Range samples, float* scratch) {
    Image image(args, scratch);
    for (int64_t sample = samples.begin; sample < samples.end; ++sample)
        image.run(sample);
}

} // namespace ADVFAST_ISA
} // namespace advfast

// Public interface of the torch-free core: plain pointers, sizes, dtype tags, device index and stream.
#pragma once

#include <cstdint>

namespace advfast {

enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };
enum class Norm : int { linf = 0, l2 = 1, l1 = 2 };

// Memory order of the images. B samples of D = C * S values; C channels of S positions.
enum class Layout : int {
    nchw = 0, // [B, C, S]
    nhwc = 1, // [B, S, C]
};

// How an operand varies over the images. A tensor operand has the dtype of x (mask: one byte, 0 or 1).
enum class Mode : int {
    value = 0,   // the host number `value`; data is null
    scalar = 1,  // [1]    one number read from memory
    sample = 2,  // [B]
    channel = 3, // [C]
    full = 4,    // [B, D] in the layout of x
};

struct Operand {
    const void* data = nullptr;
    Mode mode = Mode::value;
    double value = 0.0;
};

// One PGD step, in place on x. grad == nullptr: only the projection (project_).
struct PgdStepArgs {
    void* x = nullptr;            // [B, D] in/out
    const void* grad = nullptr;   // [B, D] in the layout of x; null: project only
    const void* x0 = nullptr;     // [B, D] centre of the ball, in the layout of x
    void* out = nullptr;          // [B, D] in out_layout, next model input; may be null
    int64_t* nonfinite = nullptr; // [1] incremented by the number of non-finite gradient entries; may be null
    void* scratch = nullptr;      // CUDA, l2 and l1: pgd_scratch_bytes() bytes; null elsewhere
    int64_t batch = 0, channels = 1, spatial = 1;
    Layout layout = Layout::nchw, out_layout = Layout::nchw;
    DType x_dtype = DType::f32, grad_dtype = DType::f32, out_dtype = DType::f32;
    Norm norm = Norm::linf;
    bool box_first = false; // l2, l1: clamp to the box inside the step too ("box-ball-box")
    bool affine = false;    // out = (x - shift) * scale, rounded to nearest; else rounded toward x0
    Operand alpha, eps, lo, hi, mask, scale, shift;
};
void pgd_step_cpu(const PgdStepArgs& args, int threads);
// Asynchronous on `stream`; never allocates or synchronises. x must be f32.
void pgd_step_cuda(const PgdStepArgs& args, int device, void* stream);
int64_t pgd_scratch_bytes(const PgdStepArgs& args);

// x <- a point of the ball around x0, clamped to the box. Words are Philox4x32-10, keyed by seed, sample and offset.
struct RandomStartArgs {
    void* x = nullptr;                   // [B, D] out
    const void* x0 = nullptr;            // [B, D] in the layout of x
    const int64_t* seed = nullptr;       // [1], on the device of x: replay-safe
    const int64_t* sample_ids = nullptr; // [B]; null: 0 .. B-1
    int64_t batch = 0, channels = 1, spatial = 1;
    uint32_t offset = 0; // stream number, e.g. the restart
    Layout layout = Layout::nchw;
    DType dtype = DType::f32;
    Norm norm = Norm::linf;
    Operand eps, lo, hi;
};
void random_start_cpu(const RandomStartArgs& args, int threads);
void random_start_cuda(const RandomStartArgs& args, int device, void* stream);

// Gradient of a 2-d convolution (one group, dilation 1) with respect to its input; made for few input channels.
struct ConvInputGradArgs {
    const float* grad = nullptr;   // [B, outputs, out_h, out_w] in grad_layout
    const float* weight = nullptr; // [outputs, inputs, kernel_h, kernel_w]
    float* out = nullptr;          // [B, inputs, height, width] in layout
    int64_t batch = 0, inputs = 1, outputs = 1;
    int64_t height = 1, width = 1, out_h = 1, out_w = 1;
    int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
    Layout grad_layout = Layout::nchw, layout = Layout::nchw;
};
void conv_input_grad_cpu(const ConvInputGradArgs& args, int threads);

// ReLU that keeps one bit a value, and its backward pass. Operands have the same order in memory, so that it matters
// for the channels alone; bits [(N + 7) / 8]: bit i % 8 of byte i / 8 belongs to value i.
struct ActivationArgs {
    const void* x = nullptr;                        // [N]
    const void* other = nullptr;                    // [N]; may be null
    const float *scale = nullptr, *shift = nullptr; // [C]; both null (the backward pass: scale alone) or not
    void* y = nullptr;                              // [N] out; may be x or other; forward: may be null
    uint8_t* bits = nullptr;                        // forward: out; backward: in
    int64_t values = 0, channels = 1, spatial = 1;
    Layout layout = Layout::nchw;
    DType dtype = DType::f32; // of the values; f16 and bf16 are computed in float and rounded once; not f64
};
// y = relu(x * scale + shift + other), bits = !(y <= 0) of the rounded y.
void relu_bits_cpu(const ActivationArgs& args, int threads);
// y = bit ? x + other : 0, and with a scale y = (bit ? x : 0) * scale + other.
void gate_cpu(const ActivationArgs& args, int threads);

// A hash of each row's bits, in which -0.0 is 0.0: see hash.cpp.
struct RowHashArgs {
    const void* x = nullptr; // [B, D]
    int64_t* out = nullptr;  // [B]
    int64_t batch = 0, dim = 0;
    DType dtype = DType::f32;
};
void row_hash_cpu(const RowHashArgs& args, int threads);

// The smallest displacement of each point onto {u: <w, u> = b} inside [0, 1]: see hyperplane.cpp.
struct HyperplaneArgs {
    const void* points = nullptr; // [B, D]
    const void* w = nullptr;      // [B, D]
    const double* b = nullptr;    // [B]
    void* out = nullptr;          // [B, D]
    int64_t batch = 0, dim = 0;
    DType dtype = DType::f32; // of all but b; f32 or f64
    Norm norm = Norm::linf;
};
void hyperplane_project_cpu(const HyperplaneArgs& args, int threads);

// A query of the linf Square attack: the window of each sample, for all [n, C, H, W] in `layout`.
struct SquareArgs {
    const void* best = nullptr;        // [n, D]
    const void* other = nullptr;       // window: the clean images; accept: the candidates
    void* out = nullptr;               // window: the candidates; accept: the best images
    const int64_t* places = nullptr;   // [n, 2] top row, left column
    const void* signs = nullptr;       // window: [n, C]
    const uint8_t* improved = nullptr; // accept: [n]
    int64_t batch = 0, channels = 1, height = 1, width = 1, window_h = 1, window_w = 1;
    double eps = 0.0;
    Layout layout = Layout::nchw;
    DType dtype = DType::f32; // f32 or f64
};
// out = best, inside the window clamp(best + 2 eps sign) to the ball around the clean image and the box [0, 1].
void square_window_cpu(const SquareArgs& args, int threads);
// out = candidate inside the windows of the samples that improved.
void square_accept_cpu(const SquareArgs& args, int threads);

// One step of Auto-PGD in linf or l2, see advfast/kernels/apgd/reference.py. Numbers are f32 or f64.
struct ApgdStepArgs {
    const void* x = nullptr;           // [B, D]
    void* x_prev = nullptr;            // [B, D] the iterate before x; overwritten with the one after it
    const void* x0 = nullptr;          // [B, D]
    const void* grad = nullptr;        // [B, D]
    const void* step = nullptr;        // [B]
    const uint8_t* improved = nullptr; // [B] 1: x and grad of the sample are copied to best and best_grad; may be null
    void *best = nullptr, *best_grad = nullptr; // [B, D]
    int64_t batch = 0, dim = 0;
    DType dtype = DType::f32;
    Norm norm = Norm::linf;
    double momentum = 1.0, eps = 0.0;
};
void apgd_step_cpu(const ApgdStepArgs& args, int threads);

// One step of Auto-PGD in l1; grad == nullptr: x is a displacement, and out what brings it into ball and box.
struct ApgdL1Args {
    const void* x = nullptr;       // [B, D]
    const void* x0 = nullptr;      // [B, D]
    const void* grad = nullptr;    // [B, D]
    const void* step = nullptr;    // [B]
    const int64_t* rank = nullptr; // [B] gradients at least as large as the rank-th smallest move
    void* out = nullptr;           // [B, D]
    int64_t batch = 0, dim = 0;
    DType dtype = DType::f32;
    double eps = 0.0;
};
void apgd_l1_cpu(const ApgdL1Args& args, int threads);

// The ntk family: products of per-sample weight gradients of one layer, see advfast/kernels/ntk/reference.py.
enum class Precision : int { fp32 = 0, tf32 = 1, bf16 = 2, bf16x3 = 3 };

// n samples of the layer's input and of the gradients with respect to its output.
struct NtkSide {
    const float* x = nullptr;      // [n, groups, pixels, e]
    const float* g = nullptr;      // [n, readouts, groups, positions, c]; patch Gram: null
    const int32_t* taps = nullptr; // [positions, T] pixel numbers, -1: zero; null: position p reads pixel p and T = 1
    int64_t n = 0, readouts = 1, pixels = 1, positions = 1;
};
struct NtkArgs {
    // chain, hadamard: [n1 * readouts1, n2 * readouts2], rows out_stride apart, added to; patch Gram: [n1, n2, groups,
    // positions1, positions2] and rows: [n, readouts, groups, c, T, e], dense, overwritten
    float* out = nullptr;
    int64_t out_stride = 0;
    NtkSide left, right; // rows: left alone
    int64_t groups = 1, c = 1, e = 1, taps = 1;
    bool upper = false; // pairs of samples i > j are left out
    Precision precision = Precision::fp32;
};
// In fp32 whatever the precision. A pair's sum has the same bits for any number of threads and wherever it stands.
void ntk_rows_cpu(const NtkArgs& args, int threads);
void ntk_patch_gram_cpu(const NtkArgs& args, int threads);
void ntk_chain_cpu(const NtkArgs& args, int threads);
void ntk_hadamard_cpu(const NtkArgs& args, int threads);
// Asynchronous on `stream`; never allocates or synchronises. A pair's sum has the same bits wherever it stands in a
// tile.
void ntk_chain_cuda(const NtkArgs& args, int device, void* stream);
void ntk_hadamard_cuda(const NtkArgs& args, int device, void* stream);

// Name of the instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "baseline".
const char* cpu_isa();
// For tests: use this instruction set from now on ("" = the best one). False if this machine lacks it.
bool set_cpu_isa(const char* name);

} // namespace advfast

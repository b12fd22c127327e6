// The CPU kernels are compiled once for each instruction set, into a namespace named by ADVFAST_ISA.
#pragma once

#include "../advfast.h"

namespace advfast {

// A piece of the work: whole samples for l2 and l1, chunks of a sample for linf, chunks of the tensor for activations.
struct Range {
    int64_t begin, end;
};

// How the ntk kernels go about a call, and what they share: see ntk_dispatch.cpp. Sizes are in floats.
enum class NtkOrder { patch_gram, chain, hadamard };
struct NtkPlan {
    NtkOrder order;
    bool shift;                            // patch Gram from that of the pixels, else from patches
    int64_t depth, rows1, rows2;           // of the first product: [rows1, depth] x [depth, rows2]
    int64_t kernel_step, pixel_step;       // a row of the patch Gram and of the pixels' Gram
    int64_t left_patches, left_grads;      // of one packed sample; 0: read where they are
    int64_t right_patches, right_grads;    // the same
    int64_t scratch;                       // of one thread
    const int32_t *columns, *starts, *set; // shift: see Shifts in ntk.cpp
};
struct NtkPair {
    int64_t left, right; // samples
};
// A block of packed samples of both sides; the first ones' numbers.
struct NtkPacked {
    float *left_patches, *left_grads, *right_patches, *right_grads;
    int64_t left_first, right_first;
};

#define ADVFAST_DECLARE_ISA(isa)                                                                                       \
    namespace isa {                                                                                                    \
    void pgd_step(const PgdStepArgs& args, Range units, int64_t* nonfinite);                                           \
    void random_start(const RandomStartArgs& args, Range units);                                                       \
    void conv_input_grad(const ConvInputGradArgs& args, Range samples, float* scratch);                                \
    void relu_bits(const ActivationArgs& args, Range chunks);                                                          \
    void gate(const ActivationArgs& args, Range chunks);                                                               \
    void row_hash(const RowHashArgs& args, Range rows);                                                                \
    void hyperplane_project(const HyperplaneArgs& args, Range rows, int64_t* heap);                                    \
    void square_window(const SquareArgs& args, Range samples);                                                         \
    void square_accept(const SquareArgs& args, Range samples);                                                         \
    void apgd_step(const ApgdStepArgs& args, Range rows);                                                              \
    void apgd_l1(const ApgdL1Args& args, Range rows, void* scratch);                                                   \
    int64_t ntk_lanes();                                                                                               \
    void ntk_shifts(const NtkArgs& args, int32_t* columns, int32_t* starts, int32_t* set);                             \
    void ntk_pack(const NtkArgs& args, const NtkPlan& plan, bool right, int64_t sample, float* patches, float* grads); \
    void ntk_pairs(const NtkArgs& args, const NtkPlan& plan, const NtkPacked& packed, const NtkPair* pairs,            \
                   int64_t count, float* scratch);                                                                     \
    void ntk_rows(const NtkArgs& args, Range units, float* scratch);                                                   \
    }
ADVFAST_DECLARE_ISA(baseline)
ADVFAST_DECLARE_ISA(avx2)
ADVFAST_DECLARE_ISA(avx512)
#undef ADVFAST_DECLARE_ISA

// conv_input_grad: neighbouring output positions handled together.
constexpr int kConvPositions = 16;

// Rows of the padded image: those that a pixel or an output position falls into.
inline int64_t conv_padded_rows(const ConvInputGradArgs& args) {
    const int64_t read = args.height + args.pad_h, written = (args.out_h - 1) * args.stride_h + args.kernel_h;
    return read > written ? read : written;
}
// Floats of one phase (column modulo stride_w) of a padded row, with room for positions behind the last.
inline int64_t conv_phase(const ConvInputGradArgs& args) {
    const int64_t read = (args.width + args.pad_w - 1) / args.stride_w + 1;
    const int64_t positions = (args.out_w + kConvPositions - 1) / kConvPositions * kConvPositions;
    const int64_t written = positions + (args.kernel_w - 1) / args.stride_w;
    return read > written ? read : written;
}

// ntk_pairs, chain: readouts and positions whose products with the patch Gram stay in the first-level cache.
constexpr int64_t kNtkReadouts = 10, kNtkPositions = 24;
// ntk_rows: floats of one thread's scratch.
constexpr int64_t kNtkRowsScratch = (192 + 32) * 256;

// Values handled together: they stay in the first-level cache between the stages of a step.
constexpr int64_t kChunk = 1024;

// The kernels of one instruction set.
struct Isa {
    const char* name;
    void (*pgd_step)(const PgdStepArgs&, Range, int64_t*);
    void (*random_start)(const RandomStartArgs&, Range);
    void (*conv_input_grad)(const ConvInputGradArgs&, Range, float*);
    void (*relu_bits)(const ActivationArgs&, Range);
    void (*gate)(const ActivationArgs&, Range);
    void (*row_hash)(const RowHashArgs&, Range);
    void (*hyperplane_project)(const HyperplaneArgs&, Range, int64_t*);
    void (*square_window)(const SquareArgs&, Range);
    void (*square_accept)(const SquareArgs&, Range);
    void (*apgd_step)(const ApgdStepArgs&, Range);
    void (*apgd_l1)(const ApgdL1Args&, Range, void*);
    int64_t (*ntk_lanes)();
    void (*ntk_shifts)(const NtkArgs&, int32_t*, int32_t*, int32_t*);
    void (*ntk_pack)(const NtkArgs&, const NtkPlan&, bool, int64_t, float*, float*);
    void (*ntk_pairs)(const NtkArgs&, const NtkPlan&, const NtkPacked&, const NtkPair*, int64_t, float*);
    void (*ntk_rows)(const NtkArgs&, Range, float*);
    bool available;
};
// The chosen one.
const Isa& isa();

} // namespace advfast

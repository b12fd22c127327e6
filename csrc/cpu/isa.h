// The CPU kernels are compiled once for each instruction set, into a namespace named by ADVFAST_ISA.
#pragma once

#include "../advfast.h"

namespace advfast {

// A piece of the work: whole samples for l2 and l1, chunks of a sample for linf, chunks of the tensor for activations.
struct Range {
    int64_t begin, end;
};

#define ADVFAST_DECLARE_ISA(isa)                                                                                       \
    namespace isa {                                                                                                    \
    void pgd_step(const PgdStepArgs& args, Range units, int64_t* nonfinite);                                           \
    void random_start(const RandomStartArgs& args, Range units);                                                       \
    void conv_input_grad(const ConvInputGradArgs& args, Range samples, float* scratch);                                \
    void relu_bits(const ActivationArgs& args, Range chunks);                                                          \
    void gate(const ActivationArgs& args, Range chunks);                                                               \
    void row_hash(const RowHashArgs& args, Range rows);                                                                \
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

// Values handled together: they stay in the first-level cache between the stages of a step.
constexpr int64_t kChunk = 1024;

} // namespace advfast

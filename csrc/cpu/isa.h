// The CPU kernels are compiled once for each instruction set, into a namespace named by ADVFAST_ISA.
#pragma once

#include "../advfast.h"

namespace advfast {

// A piece of the work: whole samples for l2 and l1, chunks of a sample for linf.
struct Range {
    int64_t begin, end;
};

#define ADVFAST_DECLARE_ISA(isa)                                                                                       \
    namespace isa {                                                                                                    \
    void pgd_step(const PgdStepArgs& args, Range units, int64_t* nonfinite);                                           \
    void random_start(const RandomStartArgs& args, Range units);                                                       \
    }
ADVFAST_DECLARE_ISA(baseline)
ADVFAST_DECLARE_ISA(avx2)
ADVFAST_DECLARE_ISA(avx512)
#undef ADVFAST_DECLARE_ISA

// Values handled together: they stay in the first-level cache between the stages of a step.
constexpr int64_t kChunk = 1024;

} // namespace advfast

// A warp's product of a [16, 16] and a [16, 8] matrix, with operands in one layout for every precision.
//
// Lane 4 * group + pair has, with k(s) = 2 * pair + s % 2 + 8 * (s / 2):
//   a[s]     row group,     column k(s)        b[s]  row k(s), column group
//   a[4 + s] row group + 8, column k(s)
//   c[0], c[1]  row group, columns 2 * pair and 2 * pair + 1;  c[2], c[3]  row group + 8
// That is the layout of mma.m16n8k16 for 16-bit operands. The instruction for tf32 has k = 8 and another one; but a sum
// over k does not ask for its order, so two of them take the same numbers. Since k(0), k(1) are the columns of c, the
// transposed result of one product is an operand of the next without a move between lanes: see `chained`.
#pragma once

#include "../cuda_utils.cuh"
#include "../ntk_math.h"

namespace advfast {

struct Lane {
    int group, pair;
    ADVFAST_DEVICE Lane() : group(static_cast<int>(threadIdx.x) % kWarp / 4), pair(static_cast<int>(threadIdx.x) % 4) {}
    ADVFAST_DEVICE int k(int s) const { return 2 * pair + s % 2 + 8 * (s / 2); }
};

// c += a b as one instruction, registers as in the PTX manual (m16n8k8, m16n8k16).
#if defined(__CUDACC__)
ADVFAST_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
ADVFAST_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulator::mma_tf32(c, a, b); }
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulator::mma_bf16(c, a, b); }
#endif

ADVFAST_DEVICE void multiply_tf32(float (&c)[4], const float (&a)[8], const float (&b)[4]) {
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
        const uint32_t left[4] = {bit_cast<uint32_t>(a[s]), bit_cast<uint32_t>(a[s + 4]), bit_cast<uint32_t>(a[s + 1]),
                                  bit_cast<uint32_t>(a[s + 5])};
        const uint32_t right[2] = {bit_cast<uint32_t>(b[s]), bit_cast<uint32_t>(b[s + 1])};
        mma_tf32(c, left, right);
    }
}

ADVFAST_DEVICE void multiply_bf16(float (&c)[4], const float (&a)[8], const float (&b)[4]) {
    const uint32_t left[4] = {pack_bf16(a[0], a[1]), pack_bf16(a[4], a[5]), pack_bf16(a[2], a[3]),
                              pack_bf16(a[6], a[7])};
    const uint32_t right[2] = {pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])};
    mma_bf16(c, left, right);
}

// In float32: there is no instruction, so the lanes hand their operands round.
ADVFAST_DEVICE void multiply_fp32(float (&c)[4], const float (&a)[8], const float (&b)[4]) {
    const Lane lane;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            const float upper = __shfl_sync(kAllLanes, a[s], 4 * lane.group + pair);
            const float lower = __shfl_sync(kAllLanes, a[4 + s], 4 * lane.group + pair);
            const float even = __shfl_sync(kAllLanes, b[s], 8 * lane.pair + pair);
            const float odd = __shfl_sync(kAllLanes, b[s], 8 * lane.pair + 4 + pair);
            c[0] = fmaf(upper, even, c[0]);
            c[1] = fmaf(upper, odd, c[1]);
            c[2] = fmaf(lower, even, c[2]);
            c[3] = fmaf(lower, odd, c[3]);
        }
    }
}

// v = high + low, both bfloat16, up to the rounding of low.
template <int N> ADVFAST_DEVICE void split(const float (&v)[N], float (&high)[N], float (&low)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        high[i] = round_bf16(v[i]);
        low[i] = round_bf16(v[i] - high[i]);
    }
}

// c += a b; operands are `rounded`.
template <Precision P> ADVFAST_DEVICE void multiply(float (&c)[4], const float (&a)[8], const float (&b)[4]) {
    if constexpr (P == Precision::fp32) {
        multiply_fp32(c, a, b);
    } else if constexpr (P == Precision::tf32) {
        multiply_tf32(c, a, b);
    } else if constexpr (P == Precision::bf16) {
        multiply_bf16(c, a, b);
    } else {
        float a_high[8], a_low[8], b_high[4], b_low[4];
        split(a, a_high, a_low);
        split(b, b_high, b_low);
        multiply_bf16(c, a_high, b_low);
        multiply_bf16(c, a_low, b_high);
        multiply_bf16(c, a_high, b_high);
    }
}

// Operands from rows of shared memory, a row's numbers along k. `stride` % 32 == 8: no two lanes meet in a bank.
ADVFAST_DEVICE void load_rows(float (&a)[8], const float* rows, int stride) {
    const Lane lane;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        a[s] = rows[lane.group * stride + lane.k(s)];
        a[4 + s] = rows[(lane.group + 8) * stride + lane.k(s)];
    }
}
ADVFAST_DEVICE void load_columns(float (&b)[4], const float* columns, int stride) {
    const Lane lane;
#pragma unroll
    for (int s = 0; s < 4; ++s)
        b[s] = columns[lane.group * stride + lane.k(s)];
}

// Rows 8 * half .. 8 * half + 7 of two results [16, 8], side by side and transposed, as the operand b.
template <Precision P>
ADVFAST_DEVICE void chained(float (&b)[4], const float (&first)[4], const float (&second)[4], int half) {
    b[0] = rounded<P>(first[2 * half]);
    b[1] = rounded<P>(first[2 * half + 1]);
    b[2] = rounded<P>(second[2 * half]);
    b[3] = rounded<P>(second[2 * half + 1]);
}

} // namespace advfast

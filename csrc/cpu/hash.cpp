// A 64-bit hash of each row. Compiled once for each instruction set (see isa.h).
//
// Values are read as unsigned numbers, -0.0 as 0.0. Two neighbours make a 64-bit word (the first one its low half; a
// float64 is a word by itself), zero stands behind the last of an odd number. Word number k enters by
// mix(word + (k + 1) * kStride), and the hash is mix(sum + D), all modulo 2^64: no order of the terms matters.

#include "isa.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

constexpr uint64_t kStride = 0x9e3779b97f4a7c15u;

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: the finaliser of SplitMix64.
inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

template <class U> inline uint64_t value(U bits) {
    const U minus_zero = static_cast<U>(U(1) << (8 * sizeof(U) - 1));
    return bits == minus_zero ? U(0) : bits;
}

// U: an unsigned number as wide as the values, which it may alias.
template <class U> uint64_t hash(const void* from, int64_t dim) {
    typedef U Word __attribute__((may_alias));
    const Word* x = static_cast<const Word*>(from);
    uint64_t sum = 0;
    if (sizeof(U) == 8) {
        for (int64_t k = 0; k < dim; ++k)
            sum += mix(value<U>(x[k]) + static_cast<uint64_t>(k + 1) * kStride);
    } else {
        const int64_t pairs = dim / 2;
        for (int64_t k = 0; k < pairs; ++k) {
            const uint64_t word = value<U>(x[2 * k]) | value<U>(x[2 * k + 1]) << 32;
            sum += mix(word + static_cast<uint64_t>(k + 1) * kStride);
        }
        if (dim % 2)
            sum += mix(value<U>(x[dim - 1]) + static_cast<uint64_t>(pairs + 1) * kStride);
    }
    return mix(sum + static_cast<uint64_t>(dim));
}

template <class U> void rows_of(const RowHashArgs& args, Range rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row)
        args.out[row] = static_cast<int64_t>(hash<U>(static_cast<const U*>(args.x) + row * args.dim, args.dim));
}

} // namespace

void row_hash(const RowHashArgs& args, Range rows) {
    if (args.dtype == DType::f64)
        rows_of<uint64_t>(args, rows);
    else if (args.dtype == DType::f32)
        rows_of<uint32_t>(args, rows);
    else
        rows_of<uint16_t>(args, rows);
}

} // namespace ADVFAST_ISA
} // namespace advfast

// CUDA plumbing for all kernel families: launches, device guard, wide loads and stores, reductions over a block.
// Where nvcc is not the compiler, tests/cpp/cuda_emulator.h has been included first and the kernels run on the host.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define ADVFAST_DEVICE __device__ __forceinline__

namespace advfast {

// --- host -----------------------------------------------------------------------------------------------------------

inline void check_cuda(const char* op, cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(error));
}

// Makes `device` current and restores the caller's device.
class DeviceGuard {
public:
    DeviceGuard(const char* op, int device) : device_(device) {
        check_cuda(op, cudaGetDevice(&before_));
        if (before_ != device_)
            check_cuda(op, cudaSetDevice(device_));
    }
    ~DeviceGuard() {
        if (before_ != device_)
            cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0, device_;
};

constexpr size_t kDefaultShared = 48 * 1024; // a block gets more only after cudaFuncSetAttribute

// The only launch: always on a named stream, always checked.
template <class... Params, class... Args> void launch(const char* op, void (*kernel)(Params...), int64_t blocks,
                                                      int threads, size_t shared, cudaStream_t stream,
                                                      const Args&... args) {
    if (blocks > INT32_MAX)
        throw std::runtime_error(std::string(op) + ": too many values for one launch: " + std::to_string(blocks) +
                                 " blocks, at most 2^31 - 1");
    if (shared > kDefaultShared)
        check_cuda(op,
                   cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    const unsigned grid = static_cast<unsigned>(blocks), block = static_cast<unsigned>(threads);
#if defined(__CUDACC__)
    kernel<<<grid, block, shared, stream>>>(args...);
#else
    emulator::launch(kernel, grid, block, shared, stream, args...);
#endif
    check_cuda(op, cudaGetLastError());
}

// --- memory ---------------------------------------------------------------------------------------------------------

#if defined(__CUDACC__)
ADVFAST_DEVICE unsigned char* dynamic_shared() {
    extern __shared__ uint4 advfast_block_memory[];
    return reinterpret_cast<unsigned char*>(advfast_block_memory);
}
ADVFAST_DEVICE void check_access(const void*, int) {} // the GPU itself faults
#else
inline unsigned char* dynamic_shared() { return emulator::shared_memory(); }
inline void check_access(const void* at, int bytes) { emulator::check_access(at, bytes); }
#endif

// N values as accesses of up to 16 bytes. `at` must be aligned to that size.
template <class T, int N> struct Wide {
    static constexpr int kBytes = sizeof(T) * N < 16 ? sizeof(T) * N : 16;
    static constexpr int kValues = kBytes / sizeof(T);
    struct alignas(kBytes) Piece {
        T v[kValues];
    };
};
template <class T, int N> ADVFAST_DEVICE void load_values(const T* at, T (&values)[N]) {
    using W = Wide<T, N>;
    check_access(at, W::kBytes);
#pragma unroll
    for (int i = 0; i < N; i += W::kValues) {
        const typename W::Piece piece = *reinterpret_cast<const typename W::Piece*>(at + i);
#pragma unroll
        for (int j = 0; j < W::kValues; ++j)
            values[i + j] = piece.v[j];
    }
}
template <class T, int N> ADVFAST_DEVICE void store_values(T* at, const T (&values)[N]) {
    using W = Wide<T, N>;
    check_access(at, W::kBytes);
#pragma unroll
    for (int i = 0; i < N; i += W::kValues) {
        typename W::Piece piece;
#pragma unroll
        for (int j = 0; j < W::kValues; ++j)
            piece.v[j] = values[i + j];
        *reinterpret_cast<typename W::Piece*>(at + i) = piece;
    }
}

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// a / b of numbers >= 0. A 64-bit division takes about a hundred instructions, a 32-bit one twenty.
ADVFAST_DEVICE int64_t divide(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0)
        return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return a / b;
}

// --- reductions over a block, in a fixed order: the same bits in every run
// --------------------------------------------

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Add {
    template <class T> ADVFAST_DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Largest {
    template <class T> ADVFAST_DEVICE T operator()(T a, T b) const { return a < b ? b : a; }
};

template <class T, class F> ADVFAST_DEVICE T warp_reduce(T value, F combine) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
    return value;
}

// N values at a time: every thread gets the totals. blockDim.x is a multiple of 32; `lanes` is shared memory for
// N * 32 numbers; values >= 0 for Largest.
template <int N, class F> ADVFAST_DEVICE void block_reduce(double (&values)[N], double* lanes, F combine) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        values[n] = warp_reduce(values[n], combine);
        if (lane == 0)
            lanes[n * kWarp + warp] = values[n];
    }
    __syncthreads();
    if (warp == 0) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const double total = warp_reduce(lane < warps ? lanes[n * kWarp + lane] : 0.0, combine);
            // Every lane has read its number: the shuffle waited for all of them.
            if (lane == 0)
                lanes[n * kWarp] = total;
        }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n)
        values[n] = lanes[n * kWarp];
    __syncthreads(); // before the next reduction writes
}

} // namespace advfast

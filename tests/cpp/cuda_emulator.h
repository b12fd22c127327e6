// Runs CUDA kernels on the host, for tests where there is no GPU: a small part of the CUDA runtime and language.
//
// Blocks run one after the other. The threads of a block are fibers that take turns at barriers and shuffles: each warp
// runs ahead of the others as far as it can, and their order is reversed from one barrier to the next, so that a
// missing barrier shows. Shared memory is filled with NaN bytes and has exactly the size of the launch, so that the
// address sanitizer sees accesses past its end. A barrier that not all threads reach ends the program. Include this
// file before the .cu files.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include <cmath>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = void*;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

constexpr int kDevices = 2;
constexpr size_t kStack = 256 * 1024;
constexpr unsigned kWarpSize = 32, kMaxThreads = 1024;
constexpr size_t kSlotBytes = 24; // of what a lane hands to the others

struct Launch {
    unsigned grid, block;
    size_t shared;
    cudaStream_t stream;
    int device;
};

// What the tests set and read.
inline int shared_limit = 227 * 1024; // as on sm_90
inline int device = 0;
inline std::vector<Launch> launches;

inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, int> allowed_shared;

// A barrier that has opened `generation` times.
struct Barrier {
    unsigned expected = 0, arrived = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    bool started = false, done = false;
    const Barrier* waits_for = nullptr;
    unsigned generation = 0;
    void* fake_stack = nullptr;
};

struct Warp {
    Barrier barrier;
    // Two exchanges at a time: a lane may start the next while others still read the last.
    unsigned char values[2][kWarpSize][kSlotBytes];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> exchanges;
    Barrier barrier;
    unsigned char* shared = nullptr;
    unsigned current = 0, switches = 0;
    ucontext_t scheduler;
    jmp_buf back;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
    void* fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_size = 0;
};
inline Block block;
inline std::vector<std::unique_ptr<unsigned char[]>> stacks;

inline Dim3 thread_index, block_index, block_size, grid_size;

inline unsigned char* shared_memory() { return block.shared; }

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "cuda emulator: %s (block %u, thread %u)\n", what, block_index.x, thread_index.x);
    std::abort();
}

// A GPU faults where the host would not.
inline void check_access(const void* at, int bytes) {
    if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes) != 0)
        fail("misaligned access");
}

// --- switching between fibers: setjmp, as ucontext makes two system calls a switch; under the sanitizer, which has to
// know about each switch, ucontext ------------------------------------------------------------------------------------

inline void to_scheduler() {
    Fiber& fiber = block.fibers[block.current];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, block.scheduler_stack,
                                   block.scheduler_stack_size);
    swapcontext(&fiber.context, &block.scheduler);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#else
    if (!_setjmp(fiber.resume))
        _longjmp(block.back, 1);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_size);
#endif
    block.body(block.arguments);
    block.fibers[block.current].done = true;
    to_scheduler();
}

inline void to_fiber(unsigned index) {
    Fiber& fiber = block.fibers[index];
    block.current = index;
    ++block.switches;
    thread_index.x = index;
    fiber.waits_for = nullptr;
    if (!fiber.started) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks[index].get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
#if defined(__SANITIZE_ADDRESS__)
    fiber.started = true;
    __sanitizer_start_switch_fiber(&block.fake_stack, stacks[index].get(), kStack);
    swapcontext(&block.scheduler, &fiber.context);
    __sanitizer_finish_switch_fiber(block.fake_stack, nullptr, nullptr);
#else
    if (!_setjmp(block.back)) {
        if (fiber.started)
            _longjmp(fiber.resume, 1);
        fiber.started = true;
        setcontext(&fiber.context);
    }
#endif
}

inline void wait(Barrier& barrier) {
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    Fiber& fiber = block.fibers[block.current];
    fiber.waits_for = &barrier;
    fiber.generation = barrier.generation;
    to_scheduler();
}

// --- launches -------------------------------------------------------------------------------------------------------

// Runs a warp until all its threads wait at the barrier of the block. Returns how many have ended.
inline unsigned run_warp(unsigned warp, bool forward) {
    const unsigned first = warp * kWarpSize, lanes = block.warps[warp].barrier.expected;
    unsigned ended = 0;
    for (bool progress = true; progress;) {
        progress = false;
        for (unsigned turn = 0; turn < lanes; ++turn) {
            const unsigned index = first + (forward ? turn : lanes - 1 - turn);
            const Fiber& fiber = block.fibers[index];
            if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.generation))
                continue;
            to_fiber(index);
            progress = true;
            ended += block.fibers[index].done;
        }
    }
    return ended;
}

inline void run_block(unsigned threads, bool forward) {
    block.fibers.assign(threads, Fiber());
    block.warps.assign((threads + kWarpSize - 1) / kWarpSize, Warp());
    block.exchanges.assign(threads, 0);
    block.barrier = Barrier{threads, 0, 0};
    for (unsigned w = 0; w < block.warps.size(); ++w)
        block.warps[w].barrier.expected = threads - w * kWarpSize < kWarpSize ? threads - w * kWarpSize : kWarpSize;
    const unsigned warps = static_cast<unsigned>(block.warps.size());
    for (unsigned left = threads; left > 0; forward = !forward) {
        const unsigned before = block.switches;
        for (unsigned turn = 0; turn < warps; ++turn)
            left -= run_warp(forward ? turn : warps - 1 - turn, forward);
        if (block.switches == before)
            fail("some threads wait at a barrier that the others do not reach");
    }
}

template <class... Params, class... Args> void launch(void (*kernel)(Params...), unsigned blocks, unsigned threads,
                                                      size_t shared, cudaStream_t stream, const Args&... args) {
    launches.push_back({blocks, threads, shared, stream, device});
    const auto found = allowed_shared.find(reinterpret_cast<const void*>(kernel));
    const size_t allowed = found == allowed_shared.end() ? 48 * 1024 : static_cast<size_t>(found->second);
    if (blocks == 0 || threads == 0 || threads > kMaxThreads || shared > allowed) {
        last_error = cudaErrorInvalidValue;
        return;
    }
    while (stacks.size() < threads)
        stacks.emplace_back(new unsigned char[kStack]); // not touched before it is used
    auto body = [&] { kernel(args...); };
    block.body = [](void* f) { (*static_cast<decltype(body)*>(f))(); };
    block.arguments = &body;
    block_size.x = threads;
    grid_size.x = blocks;
    for (unsigned b = 0; b < blocks; ++b) {
        block_index.x = b;
        block.shared = static_cast<unsigned char*>(std::malloc(shared));
        if (shared > 0)
            std::memset(block.shared, 0xff, shared);
        run_block(threads, b % 2 == 0);
        std::free(block.shared);
        block.shared = nullptr;
    }
}

using Slots = unsigned char (*)[kSlotBytes];

// Waits until every lane has handed over its value: those of all lanes.
template <class T> Slots share(const T& value) {
    static_assert(sizeof(T) <= kSlotBytes, "size of a shuffle");
    const unsigned lane = thread_index.x % kWarpSize, self = thread_index.x;
    Warp& warp = block.warps[self / kWarpSize];
    const Slots slots = warp.values[block.exchanges[self]++ % 2];
    std::memcpy(slots[lane], &value, sizeof(T));
    wait(warp.barrier);
    return slots;
}

template <class T> T exchange(T value, unsigned source) {
    const Slots slots = share(value);
    if (source >= block.warps[thread_index.x / kWarpSize].barrier.expected)
        fail("a shuffle reads a lane that does not exist");
    std::memcpy(&value, slots[source], sizeof(T));
    return value;
}

// --- matrix instructions: which lane has which number in which register is the PTX manual's table --------------------

struct Operands {
    uint32_t a[4], b[2];
};

// c += a [16, depth] b [depth, 8]; left(row, k) and right(k, column) find a number among the lanes' operands.
template <class Left, class Right> void multiply(float (&c)[4], int depth, Left left, Right right) {
    const int lane = static_cast<int>(thread_index.x % kWarpSize);
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        double sum = static_cast<double>(c[i]);
        for (int k = 0; k < depth; ++k)
            sum += static_cast<double>(left(row, k)) * static_cast<double>(right(k, column));
        c[i] = static_cast<float>(sum);
    }
}

inline Operands operands_of(Slots slots, int lane) {
    Operands found;
    std::memcpy(&found, slots[lane], sizeof(found));
    return found;
}
inline float number(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline Operands to_operands(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    return {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
}

// m16n8k8. The instruction does not look at the low 13 bits.
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const Slots slots = share(to_operands(a, b));
    const auto cut = [](uint32_t bits) { return number(bits & ~0x1fffu); };
    multiply(
        c, 8, [&](int row, int k) { return cut(operands_of(slots, row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]); },
        [&](int k, int column) { return cut(operands_of(slots, column * 4 + k % 4).b[k / 4]); });
}

// m16n8k16: two numbers a register, the first in the low half.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const Slots slots = share(to_operands(a, b));
    const auto half = [](uint32_t bits, int k) { return number(k % 2 ? bits & 0xffff0000u : bits << 16); };
    multiply(
        c, 16,
        [&](int row, int k) { return half(operands_of(slots, row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k); },
        [&](int k, int column) { return half(operands_of(slots, column * 4 + k % 8 / 2).b[k / 8], k); });
}

} // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::wait(emulator::block.barrier); }
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
    if (mask != 0xFFFFFFFFu)
        emulator::fail("only full warps are emulated");
    return emulator::exchange(value, (threadIdx.x % emulator::kWarpSize) ^ static_cast<unsigned>(lane_mask));
}
template <class T> T __shfl_sync(unsigned mask, T value, int source) {
    if (mask != 0xFFFFFFFFu)
        emulator::fail("only full warps are emulated");
    return emulator::exchange(value, static_cast<unsigned>(source));
}
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
    const unsigned long long before = *at;
    *at += value;
    return before;
}
inline void sincospif(float v, float* sine, float* cosine) {
    *sine = static_cast<float>(std::sin(3.14159265358979323846 * static_cast<double>(v)));
    *cosine = static_cast<float>(std::cos(3.14159265358979323846 * static_cast<double>(v)));
}

inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emulator::last_error;
    emulator::last_error = cudaSuccess;
    return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidValue    ? "invalid argument"
           : error == cudaErrorInvalidDevice ? "invalid device ordinal"
                                             : "no error";
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = emulator::device;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= emulator::kDevices)
        return cudaErrorInvalidDevice;
    emulator::device = device;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = emulator::shared_limit;
    return cudaSuccess;
}
template <class Kernel> cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
    if (bytes > emulator::shared_limit)
        return cudaErrorInvalidValue;
    emulator::allowed_shared[reinterpret_cast<const void*>(kernel)] = bytes;
    return cudaSuccess;
}

// Runs the real kernels on the CPU: g++ -std=c++20 -DGSRECON_SHIM -x c++. One fiber per thread of a block, blocks
// one after another. A warp runs as far as it can before the next one does; SHIM_REVERSED runs warps and lanes from
// the last to the first. A missing barrier then gives a wrong answer, or one that depends on the order.
#pragma once

#include <algorithm>
#include <math.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
using cudaStream_t = void*;
using cudaError_t = int;
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(int) { return "an error of the shim"; }
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace shim {
struct Index { unsigned x; };
struct Barrier {
    int waiting = 0, generation = 0;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done;
};
inline Index thread, block, block_size, grid;
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers(1024);
inline Barrier warp_barriers[32], block_barrier;
inline char exchange[1024][16];
inline uint64_t progress;  // counts barriers reached and passed and threads ended

inline void wait(Barrier& barrier, int n) {
    const unsigned me = thread.x;
    const int generation = barrier.generation;
    ++progress;
    if (++barrier.waiting == n) {
        barrier.waiting = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) swapcontext(&fibers[me].context, &scheduler);
    ++progress;
    thread.x = me;
}

// What every lane of this warp passed in.
template <class T, class Use>
auto with_lanes(T value, Use use) {
    const unsigned warp = thread.x / 32;
    std::memcpy(exchange[thread.x], &value, sizeof(T));
    wait(warp_barriers[warp], 32);
    T all[32];
    for (int k = 0; k < 32; ++k) std::memcpy(&all[k], exchange[32 * warp + k], sizeof(T));
    wait(warp_barriers[warp], 32);
    return use(all, thread.x % 32);
}

template <class Body>
void launch(unsigned blocks, unsigned threads, const Body& body) {
    static const Body* current;
    static const bool reversed = std::getenv("SHIM_REVERSED") != nullptr;
    grid.x = blocks, block_size.x = threads, current = &body;
    for (block.x = 0; block.x < blocks; ++block.x) {
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& fiber = fibers[t];
            fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = &scheduler;
            void (*entry)() = [] {
                const unsigned me = thread.x;
                (*current)();
                fibers[me].done = true;
                ++progress;
            };
            makecontext(&fiber.context, entry, 0);
        }
        for (bool running = true; running;) {
            running = false;
            const uint64_t before_all = progress;
            for (unsigned w = 0; w < threads / 32; ++w) {
                const unsigned warp = reversed ? threads / 32 - 1 - w : w;
                for (uint64_t before = progress - 1; before != progress;) {
                    before = progress;
                    for (unsigned k = 0; k < 32; ++k) {
                        thread.x = 32 * warp + (reversed ? 31 - k : k);
                        if (fibers[thread.x].done) continue;
                        swapcontext(&scheduler, &fibers[thread.x].context);
                        running = true;
                    }
                }
            }
            if (running && progress == before_all) {
                std::fprintf(stderr, "shim: the threads of a block wait for each other forever\n");
                std::abort();
            }
        }
    }
}
}  // namespace shim

#define threadIdx shim::thread
#define blockIdx shim::block
#define gridDim shim::grid
#define LAUNCH(kernel, blocks, threads, stream, ...) \
    ((void)(stream), shim::launch(blocks, threads, [&] { kernel(__VA_ARGS__); }))

inline void __syncthreads() { shim::wait(shim::block_barrier, int(shim::block_size.x)); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return shim::with_lanes(value, [=](const T* all, unsigned lane) { return all[lane ^ unsigned(mask)]; });
}
inline unsigned __match_any_sync(unsigned, int value) {
    return shim::with_lanes(value, [=](const int* all, unsigned) {
        unsigned same = 0;
        for (int k = 0; k < 32; ++k) same |= unsigned(all[k] == value) << k;
        return same;
    });
}
inline unsigned __ballot_sync(unsigned, int vote) {
    return shim::with_lanes(vote != 0, [](const bool* all, unsigned) {
        unsigned votes = 0;
        for (int k = 0; k < 32; ++k) votes |= unsigned(all[k]) << k;
        return votes;
    });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __int_as_float(int bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline int __float_as_int(float f) { int bits; std::memcpy(&bits, &f, 4); return bits; }
template <class T>
T atomicAdd(T* place, T value) { const T old = *place; *place += value; return old; }
template <class T>
T atomicMax(T* place, T value) { const T old = *place; *place = std::max(old, value); return old; }

// What the kernels need from the machine: CUDA, or the CPU shim of the tests (GSRECON_SHIM).
#pragma once

#include <cmath>
#include <cstdint>

#ifdef GSRECON_SHIM
#include "cuda_shim.hpp"
#else
#include <cuda_runtime.h>
// A macro, so that the shim can give it another meaning: g++ cannot parse <<< >>>.
#define LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__)
#endif

#define HD __host__ __device__ __forceinline__

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// 2^x by the special function unit (relative error below 2^-22); the CPU's own on the CPU.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ int lane_index() { return threadIdx.x & (WARP - 1); }
__device__ __forceinline__ unsigned lanes_below() { return (1u << lane_index()) - 1u; }

// The sum over the lanes, in all lanes. Lanes are paired in a fixed order: the same bits every time.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// Place of this thread among those that say keep, and how many do. All threads of a block of so many WARPS take
// part; counts is shared.
template <int WARPS>
__device__ __forceinline__ int block_rank(bool keep, int* counts, int& total) {
    const unsigned votes = __ballot_sync(ALL_LANES, keep);
    const int warp = threadIdx.x / WARP;
    if (lane_index() == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) before += counts[w];
        total += counts[w];
    }
    __syncthreads();  // counts may be written again
    return before + __popc(votes & lanes_below());
}

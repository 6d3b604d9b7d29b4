// Cells, a stable counting sort of the Gaussians by cell, and packed records.
//
// There is no depth order to keep, so nothing is duplicated per brick and no 64-bit keys are sorted. The sort is
// stable and its positions do not depend on atomics: the sums are added in the same order every time.
#include "gaussian.cuh"
#include "splat.h"

namespace {

constexpr int THREADS = 256;
constexpr int DIGITS = 256;
constexpr int TILE = 2048;
static_assert(THREADS == DIGITS, "one thread per digit");

__global__ void prepare(Inputs in, int n, const __grid_constant__ Lattice lattice, double cutoff, int* keys,
                        unsigned long long* stats) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    unsigned long long bad = 0, volume = 0;
    if (i < n) {
        const Gaussian g = load_gaussian(in, i);
        int key = lattice.first_key[lattice.n_levels];
        bad = !is_valid(g, factorize(g));
        if (!bad) {
            const Box box = find_box(g, lattice, cutoff);
            if (!is_empty(box)) {
                key = key_of(g, box, lattice);
                volume = volume_of(box);
            }
        }
        keys[i] = key;
    }
    // Integers: atomics are exact in any order.
    const unsigned long long all_bad = warp_sum(bad), total = warp_sum(volume), largest = warp_max(volume);
    if (lane_index() == 0) {
        if (all_bad) atomicAdd(&stats[0], all_bad);
        if (total) atomicAdd(&stats[1], total);
        if (largest) atomicMax(&stats[2], largest);
    }
}

__device__ __forceinline__ int digit_of(int key, int shift) { return (key >> shift) & (DIGITS - 1); }

__global__ void sort_count(const int* keys, int n, int shift, int* counts) {
    __shared__ int histogram[DIGITS];
    histogram[threadIdx.x] = 0;
    __syncthreads();
    const int64_t first = int64_t(blockIdx.x) * TILE;
    for (int k = threadIdx.x; k < TILE; k += THREADS)
        if (first + k < n) atomicAdd(&histogram[digit_of(keys[first + k], shift)], 1);
    __syncthreads();
    counts[int64_t(threadIdx.x) * gridDim.x + blockIdx.x] = histogram[threadIdx.x];
}

// Every thread ranks its key among the equal digits before it: within the warp by matching lanes, between the
// warps by counts in shared memory, between the rounds and tiles by a running position.
__global__ void sort_scatter(const int* keys, const int* values, const int* offsets, int n, int shift,
                             int* keys_out, int* values_out) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ int position[WARPS][DIGITS];
    const int thread = threadIdx.x, warp = thread / WARP;
    int running = offsets[int64_t(thread) * gridDim.x + blockIdx.x];  // of the digit `thread`
    const int64_t first = int64_t(blockIdx.x) * TILE;
    for (int round = 0; round < TILE; round += THREADS) {
        const int64_t i = first + round + thread;
        if (first + round >= n) break;  // the same for all threads
        for (int w = 0; w < WARPS; ++w) position[w][thread] = 0;
        __syncthreads();
        const int key = i < n ? keys[i] : 0;
        const int digit = i < n ? digit_of(key, shift) : DIGITS;  // those past the end match only each other
        const unsigned peers = __match_any_sync(ALL_LANES, digit);
        const int rank = __popc(peers & lanes_below());
        if (i < n && rank == 0) position[warp][digit] = __popc(peers);
        __syncthreads();
        for (int w = 0; w < WARPS; ++w) {
            const int count = position[w][thread];
            position[w][thread] = running;
            running += count;
        }
        __syncthreads();
        if (i < n) {
            const int target = position[warp][digit] + rank;
            keys_out[target] = key;
            values_out[target] = values ? values[i] : int(i);
        }
        __syncthreads();
    }
}

__global__ void cell_starts(const int* sorted_keys, int n, int n_keys, int* starts, long long* stats) {
    const int64_t key = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (key > n_keys) return;
    int low = 0, high = n;  // the first position whose key is not below
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (sorted_keys[middle] < key) low = middle + 1;
        else high = middle;
    }
    starts[key] = low;
    if (key == n_keys) stats[3] = low;
}

__global__ void pack(Inputs in, const int* order, int n_used, const __grid_constant__ Lattice lattice, double cutoff,
                     Record* records) {
    const int64_t j = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (j >= n_used) return;
    const Gaussian g = load_gaussian(in, order[j]);
    records[j] = make_record(g, factorize(g), find_box(g, lattice, cutoff));
}

unsigned blocks_for(int64_t n, int64_t per_block) { return unsigned((n + per_block - 1) / per_block); }
cudaStream_t stream_of(int64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }
bool counts_fit(int64_t n) { return n > 0 && n < (int64_t(1) << 31) - 1; }

}  // namespace

extern "C" {

int64_t gsrecon_prepare(const void* means, const void* covariances, const void* log_weights, void* keys,
                        void* stats, int64_t n, int64_t doubles, int64_t nx, int64_t ny, int64_t nz,
                        double cutoff, int64_t stream) {
    Lattice lattice;
    if (!counts_fit(n) || !make_lattice(nx, ny, nz, lattice)) return GSRECON_OUT_OF_RANGE;
    const Inputs in{means, covariances, log_weights, int(doubles)};
    LAUNCH(prepare, blocks_for(n, THREADS), THREADS, stream_of(stream), in, int(n), lattice, cutoff,
           static_cast<int*>(keys), static_cast<unsigned long long*>(stats));
    return cudaGetLastError();
}

int64_t gsrecon_sort_count(const void* keys, void* counts, int64_t n, int64_t shift, int64_t stream) {
    if (!counts_fit(n)) return GSRECON_OUT_OF_RANGE;
    LAUNCH(sort_count, blocks_for(n, TILE), THREADS, stream_of(stream), static_cast<const int*>(keys), int(n),
           int(shift), static_cast<int*>(counts));
    return cudaGetLastError();
}

int64_t gsrecon_sort_scatter(const void* keys, const void* values, const void* offsets, void* keys_out,
                             void* values_out, int64_t n, int64_t shift, int64_t first_pass, int64_t stream) {
    if (!counts_fit(n)) return GSRECON_OUT_OF_RANGE;
    LAUNCH(sort_scatter, blocks_for(n, TILE), THREADS, stream_of(stream), static_cast<const int*>(keys),
           first_pass ? nullptr : static_cast<const int*>(values), static_cast<const int*>(offsets), int(n),
           int(shift), static_cast<int*>(keys_out), static_cast<int*>(values_out));
    return cudaGetLastError();
}

int64_t gsrecon_cell_starts(const void* sorted_keys, void* starts, void* stats, int64_t n, int64_t n_keys,
                            int64_t stream) {
    if (!counts_fit(n)) return GSRECON_OUT_OF_RANGE;
    LAUNCH(cell_starts, blocks_for(n_keys + 1, THREADS), THREADS, stream_of(stream),
           static_cast<const int*>(sorted_keys), int(n), int(n_keys), static_cast<int*>(starts),
           static_cast<long long*>(stats));
    return cudaGetLastError();
}

int64_t gsrecon_pack(const void* means, const void* covariances, const void* log_weights, const void* order,
                     void* records, int64_t n_used, int64_t doubles, int64_t nx, int64_t ny, int64_t nz,
                     double cutoff, int64_t stream) {
    Lattice lattice;
    if (!counts_fit(n_used) || !make_lattice(nx, ny, nz, lattice)) return GSRECON_OUT_OF_RANGE;
    const Inputs in{means, covariances, log_weights, int(doubles)};
    LAUNCH(pack, blocks_for(n_used, THREADS), THREADS, stream_of(stream), in, static_cast<const int*>(order),
           int(n_used), lattice, cutoff, static_cast<Record*>(records));
    return cudaGetLastError();
}

const char* gsrecon_error(int64_t code) {
    if (code == GSRECON_OUT_OF_RANGE) return "a size is out of range for the CUDA kernels";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
}

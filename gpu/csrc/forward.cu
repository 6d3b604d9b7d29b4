// Sums on the lattice: a block owns a brick of 8^3 voxels, a warp 8 x 4 x 4 of them, a thread a row of 4 along x.
//
// The block walks the Gaussians of the neighbouring cells of every level in order, 128 at a time: each thread
// tests one against the brick and its four sub-bricks, the survivors are compacted in order into shared memory,
// and each warp adds those that reach its part. Every voxel has one owner and its summands come in the sorted
// order: no atomics, the same bits every time.
#include "gaussian.cuh"
#include "splat.h"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int CAPACITY = 2 * THREADS;  // survivors are used once fewer than THREADS free places are left
constexpr int MAX_RANGES = 9 * MAX_LEVELS;
static_assert(MAX_RANGES <= THREADS, "one thread per range");

// Launches longer than this would keep a display or another process waiting.
constexpr int64_t BRICKS_PER_LAUNCH = int64_t(1) << 20;

// Smallest magnitude in an interval of that half width about `centre`.
__device__ __forceinline__ float nearest_zero(float centre, float half) {
    return fmaxf(fabsf(centre) - half, 0.0f);
}

// Bits of the sub-bricks (4 x 4 in y and z, 8 in x) that a box touches.
__device__ __forceinline__ int sub_bricks_of(const int* box, const int* first) {
    int low[3], high[3];
    for (int k = 0; k < 3; ++k) {
        low[k] = (box[k] & 0xffff) - first[k];
        high[k] = (box[k] >> 16) - first[k];
    }
    if (low[0] >= BRICK || high[0] < 0) return 0;
    int mask = 0;
#pragma unroll
    for (int part = 0; part < WARPS; ++part) {
        const int y = (part & 1) * 4, z = (part >> 1) * 4;
        if (low[1] <= y + 3 && high[1] >= y && low[2] <= z + 3 && high[2] >= z) mask |= 1 << part;
    }
    return mask;
}

// Those of them that the Gaussian itself may reach; `place` is its centre in the brick's coordinates. Interval
// arithmetic on v1, v2, v3: exact for axis-aligned Gaussians, never too small.
__device__ __forceinline__ int within_reach(const Record& r, const float* place, float limit, int mask) {
    int reached = 0;
#pragma unroll
    for (int part = 0; part < WARPS; ++part) {
        const int y = (part & 1) * 4, z = (part >> 1) * 4;
        const float dx = 3.5f - place[0], dy = y + 1.5f - place[1], dz = z + 1.5f - place[2];
        const float bz = r.b * dz, u = dy - bz, cz = r.c * dz, au = r.a * u;
        // What float32 may be off by in the centres of the intervals.
        const float slack_u = 1e-3f + 1e-6f * (fabsf(dy) + fabsf(bz));
        const float slack_x = 1e-3f + 1e-6f * (fabsf(dx) + fabsf(cz) + fabsf(au)) + fabsf(r.a) * slack_u;
        const float half_u = 1.5f + fabsf(r.b) * 1.5f + slack_u;
        const float half_x = 3.5f + fabsf(r.a) * 1.5f + fabsf(r.c - r.a * r.b) * 1.5f + slack_x;
        const float v3 = r.s3 * nearest_zero(dz, 1.5f);
        const float v2 = r.s2 * nearest_zero(u, half_u);
        const float v1 = r.s1 * nearest_zero(dx - cz - au, half_x);
        if (v1 * v1 + v2 * v2 + v3 * v3 <= limit) reached |= 1 << part;
    }
    return mask & reached;
}

// Sums of the weights and of CHANNELS amplitudes, from channel `first_channel` on.
template <int CHANNELS>
__global__ void __launch_bounds__(THREADS)
forward(const Record* __restrict__ records, const int* __restrict__ starts, const float* __restrict__ amplitudes,
        int n_channels, int first_channel, const __grid_constant__ Lattice lattice, int64_t first_brick,
        float level, float limit, float* __restrict__ sums) {
    __shared__ float4 centre_b[CAPACITY];   // centre, b
    __shared__ float4 shape[CAPACITY];      // c, a, s1, s2
    __shared__ float4 rest[CAPACITY];       // s3, gain, bits of the sub-bricks
    __shared__ float4 gains[CHANNELS ? CAPACITY : 1];  // gain times amplitudes
    __shared__ int range_begin[MAX_RANGES], range_length[MAX_RANGES];
    __shared__ int counts[WARPS], n_candidates;

    const int thread = threadIdx.x, warp = thread / WARP, lane = lane_index();
    const int bricks_x = cells_along(lattice, 0, 0), bricks_y = cells_along(lattice, 1, 0);
    const int64_t index = first_brick + blockIdx.x;
    const int brick[3] = {int(index % bricks_x), int(index / bricks_x % bricks_y),
                          int(index / (int64_t(bricks_x) * bricks_y))};
    const int first[3] = {brick[0] * BRICK, brick[1] * BRICK, brick[2] * BRICK};

    // Three neighbouring cells along x are one range of the sorted Gaussians: nine ranges per level.
    int begin = 0, length = 0;
    if (thread < 9 * lattice.n_levels) {
        const int cell_level = thread / 9, shift = cell_level;
        const int y = (brick[1] >> shift) + thread % 3 - 1, z = (brick[2] >> shift) + thread / 3 % 3 - 1;
        const int cells_x = cells_along(lattice, 0, cell_level), cells_y = cells_along(lattice, 1, cell_level);
        if (y >= 0 && y < cells_y && z >= 0 && z < cells_along(lattice, 2, cell_level)) {
            const int row = lattice.first_key[cell_level] + (z * cells_y + y) * cells_x, x = brick[0] >> shift;
            begin = starts[row + (x > 0 ? x - 1 : 0)];
            length = starts[row + (x + 1 < cells_x ? x + 1 : x) + 1] - begin;
        }
    }
    int n_ranges;
    if (thread == 0) n_candidates = 0;
    const int place_of_range = block_rank<WARPS>(length > 0, counts, n_ranges);
    if (length > 0) {
        range_begin[place_of_range] = begin;
        range_length[place_of_range] = length;
        atomicAdd(&n_candidates, length);  // integers: exact in any order
    }
    __syncthreads();
    const int n_all = n_candidates;

    // This thread's voxels, in the brick's coordinates.
    const float x = float((lane & 1) * 4), y = float((warp & 1) * 4 + (lane >> 1 & 3));
    const float z = float((warp >> 1) * 4 + (lane >> 3));
    float weights[4] = {}, values[4][CHANNELS ? CHANNELS : 1] = {};
    int range = 0, position = thread, n_kept = 0;
    for (int64_t base = 0; base < n_all; base += THREADS) {
        int mask = 0;
        int64_t candidate = 0;
        float place[3];
        Record r;
        if (base + thread < n_all) {
            while (position >= range_length[range]) position -= range_length[range++];
            candidate = range_begin[range] + position;
            position += THREADS;
            mask = sub_bricks_of(records[candidate].box, first);
            if (mask) {
                r = records[candidate];
                for (int k = 0; k < 3; ++k) place[k] = float(r.anchor[k] - first[k]) + r.offset[k];
                mask = within_reach(r, place, limit, mask);
            }
        }
        int n_new;
        const int slot = n_kept + block_rank<WARPS>(mask != 0, counts, n_new);
        if (mask) {
            centre_b[slot] = make_float4(place[0], place[1], place[2], r.b);
            shape[slot] = make_float4(r.c, r.a, r.s1, r.s2);
            rest[slot] = make_float4(r.s3, r.gain, __int_as_float(mask), 0.0f);
            if (CHANNELS) {
                float a[4] = {};
                for (int c = 0; c < CHANNELS; ++c)
                    if (first_channel + c < n_channels)
                        a[c] = r.gain * amplitudes[candidate * n_channels + first_channel + c];
                gains[slot] = make_float4(a[0], a[1], a[2], a[3]);
            }
        }
        n_kept += n_new;
        if (n_kept <= CAPACITY - THREADS && base + THREADS < n_all) continue;  // the same for all threads
        __syncthreads();
        for (int i = 0; i < n_kept; ++i) {
            const float4 last = rest[i];
            if (!(__float_as_int(last.z) >> warp & 1)) continue;  // the same for all lanes
            const float4 head = centre_b[i], middle = shape[i];
            const float dz = z - head.z, u = fmaf(-head.w, dz, y - head.y);
            const float v3 = last.x * dz, v2 = middle.w * u;
            const float row = -fmaf(v3, v3, v2 * v2);
            const float v1 = middle.z * ((x - head.x) - fmaf(middle.x, dz, middle.y * u));
            float gain[4] = {};
            if (CHANNELS) {
                const float4 all = gains[i];
                gain[0] = all.x, gain[1] = all.y, gain[2] = all.z, gain[3] = all.w;
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float v = fmaf(float(k), middle.z, v1);
                const float t = fmaxf(power_of_two(fmaf(-v, v, row)) - level, 0.0f);
                weights[k] = fmaf(last.y, t, weights[k]);
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) values[k][c] = fmaf(gain[c], t, values[k][c]);
            }
        }
        __syncthreads();
        n_kept = 0;
    }

    const int vx = first[0] + int(x), vy = first[1] + int(y), vz = first[2] + int(z);
    if (vx >= lattice.size[0] || vy >= lattice.size[1] || vz >= lattice.size[2]) return;
    const int64_t n_voxels = int64_t(lattice.size[0]) * lattice.size[1] * lattice.size[2];
    float* voxel = sums + (int64_t(vz) * lattice.size[1] + vy) * lattice.size[0] + vx;
    const int n_here = lattice.size[0] - vx < 4 ? lattice.size[0] - vx : 4;
#pragma unroll
    for (int c = -1; c < CHANNELS; ++c) {
        if (first_channel + c >= n_channels || (c < 0 && first_channel > 0)) continue;
        float* target = voxel + (c < 0 ? 0 : 1 + first_channel + c) * n_voxels;
        float out[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) out[k] = c < 0 ? weights[k] : values[k][c < 0 ? 0 : c];
        if (lattice.size[0] % 4 == 0) {  // then every row begins at a multiple of 16 bytes
            *reinterpret_cast<float4*>(target) = make_float4(out[0], out[1], out[2], out[3]);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (k < n_here) target[k] = out[k];
        }
    }
}

}  // namespace

extern "C" int64_t gsrecon_forward(const void* records, const void* starts, const void* amplitudes, void* sums,
                                   int64_t n_channels, int64_t nx, int64_t ny, int64_t nz, double cutoff,
                                   int64_t stream) {
    Lattice lattice;
    if (!make_lattice(nx, ny, nz, lattice) || n_channels < 0 || n_channels > 1 << 20) return GSRECON_OUT_OF_RANGE;
    const int64_t n_bricks = lattice.first_key[1];
    const float level = float(std::exp2(-KAPPA2 * cutoff * cutoff));
    const float limit = float(KAPPA2 * cutoff * cutoff) * 1.0001f;  // rounding must not cull
    const auto queue = reinterpret_cast<cudaStream_t>(stream);
    // More than four channels: the weights are evaluated again for every four.
    for (int64_t channel = 0; channel == 0 || channel < n_channels; channel += 4) {
        const int64_t left = n_channels - channel;
        auto* kernel = left > 2 ? forward<4> : left == 2 ? forward<2> : left == 1 ? forward<1> : forward<0>;
        for (int64_t brick = 0; brick < n_bricks; brick += BRICKS_PER_LAUNCH) {
            const int64_t n = n_bricks - brick < BRICKS_PER_LAUNCH ? n_bricks - brick : BRICKS_PER_LAUNCH;
            LAUNCH(kernel, unsigned(n), THREADS, queue, static_cast<const Record*>(records),
                   static_cast<const int*>(starts), static_cast<const float*>(amplitudes), int(n_channels),
                   int(channel), lattice, brick, level, limit, static_cast<float*>(sums));
        }
    }
    return cudaGetLastError();
}

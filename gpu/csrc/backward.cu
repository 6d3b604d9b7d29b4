// Gradients: one warp per Gaussian walks its box, keeps the moments in registers and writes them once.
//
// Owner computes: no atomics, the same bits every time. A box of more than `limit` voxels is cut into pieces, a
// warp each, whose moments are added in order. The chain rule follows in float64, a thread per Gaussian.
#include "gaussian.cuh"
#include "splat.h"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int FINISH_THREADS = 128;

// With GEOMETRY the ten moments of the shape and those of the first CHANNELS amplitudes; the gradient of a weight
// takes in all n_channels. Without, the amplitudes from `first_channel` on alone.
// Blocks per multiprocessor: 64 registers a thread, 96 where all sums are kept (with fewer it spills).
template <int CHANNELS, bool GEOMETRY>
__global__ void __launch_bounds__(THREADS, CHANNELS == 4 && GEOMETRY ? 5 : 8)
moments(const Record* __restrict__ records, const float* __restrict__ amplitudes, const float* __restrict__ grads,
        const int* __restrict__ owners, const int* __restrict__ pieces, int64_t n_tasks, int64_t limit,
        int n_channels, int first_channel, const __grid_constant__ Lattice lattice, float level,
        float* __restrict__ out) {
    const int64_t task = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (task >= n_tasks) return;  // whole warps; nothing below waits for another warp
    const int64_t j = owners ? owners[task] : task;
    const Record r = records[j];
    int low[3], side[3];
    for (int k = 0; k < 3; ++k) {
        low[k] = r.box[k] & 0xffff;
        side[k] = (r.box[k] >> 16) - low[k] + 1;
    }
    const int64_t volume = int64_t(side[0]) * side[1] * side[2];
    if (!owners && volume > limit) return;  // in pieces instead
    const int* piece = pieces + 4 * task;   // its number and its first voxel's place in the box
    const int64_t left = owners ? volume - piece[0] * limit : volume;
    const int n = int(left < limit ? left : limit);

    // The lanes walk the box's voxels 32 at a time: coordinates advance by the digits of 32 with carries, so
    // that no lane idles at the end of a row and nothing is divided in the loop.
    const int lane = lane_index();
    float x = 0.0f, y = 0.0f, z = 0.0f;
    if (owners) x = float(piece[1]), y = float(piece[2]), z = float(piece[3]);
    const float side_x = float(side[0]), side_y = float(side[1]);
    x += float(lane % side[0]);
    y += float(lane / side[0] % side[1]);
    z += float(lane / side[0] / side[1]);
    if (x >= side_x) x -= side_x, y += 1.0f;
    if (y >= side_y) y -= side_y, z += 1.0f;
    const int step[3] = {WARP % side[0], WARP / side[0] % side[1], WARP / side[0] / side[1]};
    const float step_x = float(step[0]), step_y = float(step[1]), step_z = float(step[2]);
    const int64_t row = lattice.size[0], slice = row * lattice.size[1], n_voxels = slice * lattice.size[2];
    const int64_t stride = step[0] + step[1] * row + step[2] * slice;
    const int64_t carry_x = row - side[0], carry_y = slice - side[1] * row;
    const float* voxel = grads + (low[2] + int(z)) * slice + (low[1] + int(y)) * row + low[0] + int(x);
    const float origin_x = float(low[0] - r.anchor[0]) - r.offset[0];
    const float origin_y = float(low[1] - r.anchor[1]) - r.offset[1];
    const float origin_z = float(low[2] - r.anchor[2]) - r.offset[2];

    const float* amplitude = amplitudes + j * n_channels;
    float a[CHANNELS ? CHANNELS : 1] = {}, of_amplitude[CHANNELS ? CHANNELS : 1] = {};
    if (GEOMETRY)
        for (int c = 0; c < CHANNELS; ++c)
            if (c < n_channels) a[c] = amplitude[c];
    float m[GEOMETRY_MOMENTS] = {};
    for (int i = lane; i < n; i += WARP) {
        const float dx = origin_x + x, dy = origin_y + y, dz = origin_z + z;
        const float u = fmaf(-r.b, dz, dy);
        const float v3 = r.s3 * dz, v2 = r.s2 * u, v1 = r.s1 * (dx - fmaf(r.c, dz, r.a * u));
        const float e = power_of_two(-fmaf(v1, v1, fmaf(v2, v2, v3 * v3)));
        if (e > level) {
            const float t = e - level;
            float grad = GEOMETRY ? voxel[0] : 0.0f;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                if (first_channel + c >= n_channels) continue;
                const float g = voxel[(1 + first_channel + c) * n_voxels];
                of_amplitude[c] = fmaf(g, t, of_amplitude[c]);
                grad = fmaf(a[c], g, grad);
            }
            if (GEOMETRY) {
                if (CHANNELS == 4)
                    for (int c = 4; c < n_channels; ++c)
                        grad = fmaf(amplitude[c], voxel[(1 + c) * n_voxels], grad);
                const float h = grad * e, h1 = h * v1, h2 = h * v2, h3 = h * v3;
                m[0] = fmaf(grad, t, m[0]);
                m[1] += h1;
                m[2] += h2;
                m[3] += h3;
                m[4] = fmaf(h1, v1, m[4]);
                m[5] = fmaf(h1, v2, m[5]);
                m[6] = fmaf(h1, v3, m[6]);
                m[7] = fmaf(h2, v2, m[7]);
                m[8] = fmaf(h2, v3, m[8]);
                m[9] = fmaf(h3, v3, m[9]);
            }
        }
        x += step_x;
        y += step_y;
        z += step_z;
        voxel += stride;
        if (x >= side_x) {
            x -= side_x;
            y += 1.0f;
            voxel += carry_x;
        }
        if (y >= side_y) {
            y -= side_y;
            z += 1.0f;
            voxel += carry_y;
        }
    }

    float* target = out + task * (GEOMETRY_MOMENTS + n_channels);
    if (GEOMETRY) {
#pragma unroll
        for (int k = 0; k < GEOMETRY_MOMENTS; ++k) {
            const float sum = warp_sum(m[k]);
            if (lane == k) target[k] = sum;
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const float sum = warp_sum(of_amplitude[c]);
        if (lane == c && first_channel + c < n_channels) target[GEOMETRY_MOMENTS + first_channel + c] = sum;
    }
}

__global__ void add_segments(const float* parts, const int* wide, const int* first, int n_wide, int columns,
                             float* out) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= int64_t(n_wide) * columns) return;
    const int w = int(i / columns), column = int(i % columns);
    double sum = 0.0;
    for (int64_t k = first[w]; k < first[w + 1]; ++k) sum += parts[k * columns + column];
    out[int64_t(wide[w]) * columns + column] = float(sum);
}

__device__ __forceinline__ void store(void* data, int64_t i, int is_double, double value) {
    if (is_double) static_cast<double*>(data)[i] = value;
    else static_cast<float*>(data)[i] = float(value);
}

__global__ void finish(Inputs in, const int* order, const float* all_moments, int n_used, int n_channels,
                       void* grad_means, void* grad_covariances, void* grad_log_weights, float* grad_amplitudes) {
    const int64_t j = int64_t(blockIdx.x) * FINISH_THREADS + threadIdx.x;
    if (j >= n_used) return;
    const float* mine = all_moments + j * (GEOMETRY_MOMENTS + n_channels);
    const int64_t i = order[j];
    const Gaussian g = load_gaussian(in, i);
    const double gain = exp(g.log_weight);
    double mean[3], cov[6];
    chain_rule(factorize(g), mine, gain, mean, cov);
    for (int k = 0; k < 3; ++k) store(grad_means, 3 * i + k, in.doubles & 1, mean[k]);
    for (int k = 0; k < 6; ++k) store(grad_covariances, 6 * i + k, in.doubles & 2, cov[k]);
    store(grad_log_weights, i, in.doubles & 4, gain * mine[0]);
    for (int c = 0; c < n_channels; ++c)
        grad_amplitudes[i * n_channels + c] = float(gain * mine[GEOMETRY_MOMENTS + c]);
}

unsigned blocks_for(int64_t n, int64_t per_block) { return unsigned((n + per_block - 1) / per_block); }
cudaStream_t stream_of(int64_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

extern "C" {

int64_t gsrecon_moments(const void* records, const void* amplitudes, const void* grad_sums, const void* owners,
                        const void* pieces, void* out, int64_t n_tasks, int64_t segmented, int64_t limit,
                        int64_t n_channels, int64_t nx, int64_t ny, int64_t nz, double cutoff, int64_t stream) {
    Lattice lattice;
    if (!make_lattice(nx, ny, nz, lattice) || n_channels < 0 || n_channels > 1 << 20 || n_tasks < 1 ||
        n_tasks >= (int64_t(1) << 31) - 1 || limit < 1 || limit > (1 << 30))
        return GSRECON_OUT_OF_RANGE;
    const float level = float(std::exp2(-KAPPA2 * cutoff * cutoff));
    for (int64_t channel = 0; channel == 0 || channel < n_channels; channel += 4) {
        auto* kernel = channel > 0       ? moments<4, false>
                       : n_channels > 2  ? moments<4, true>
                       : n_channels == 2 ? moments<2, true>
                       : n_channels == 1 ? moments<1, true>
                                         : moments<0, true>;
        LAUNCH(kernel, blocks_for(n_tasks, WARPS), THREADS, stream_of(stream), static_cast<const Record*>(records),
               static_cast<const float*>(amplitudes), static_cast<const float*>(grad_sums),
               segmented ? static_cast<const int*>(owners) : nullptr, static_cast<const int*>(pieces), n_tasks,
               limit, int(n_channels), int(channel), lattice, level, static_cast<float*>(out));
    }
    return cudaGetLastError();
}

int64_t gsrecon_add_segments(const void* parts, const void* wide, const void* first, void* out, int64_t n_wide,
                             int64_t n_channels, int64_t stream) {
    const int64_t columns = GEOMETRY_MOMENTS + n_channels;
    LAUNCH(add_segments, blocks_for(n_wide * columns, THREADS), THREADS, stream_of(stream),
           static_cast<const float*>(parts), static_cast<const int*>(wide), static_cast<const int*>(first),
           int(n_wide), int(columns), static_cast<float*>(out));
    return cudaGetLastError();
}

int64_t gsrecon_finish(const void* means, const void* covariances, const void* log_weights, const void* order,
                       const void* all_moments, void* grad_means, void* grad_covariances, void* grad_log_weights,
                       void* grad_amplitudes, int64_t n_used, int64_t n_channels, int64_t doubles,
                       int64_t stream) {
    const Inputs in{means, covariances, log_weights, int(doubles)};
    LAUNCH(finish, blocks_for(n_used, FINISH_THREADS), FINISH_THREADS, stream_of(stream), in,
           static_cast<const int*>(order), static_cast<const float*>(all_moments), int(n_used), int(n_channels),
           grad_means, grad_covariances, grad_log_weights, static_cast<float*>(grad_amplitudes));
    return cudaGetLastError();
}
}

// Complex 2D Gaussians on frames: images and gradients (see gpu/splat2d.py for the formulas).
//
// Images: a block owns a tile of 16 x 32 pixels of one frame, a thread four rows of one column. The block walks the
// frame's Gaussians in order, 128 at a time; those whose box meets the tile are compacted in order into shared
// memory. Every pixel has one owner and a fixed order: no atomics, the same bits every time. The test against every
// tile costs (Gaussians x tiles), which for frames of a few hundred pixels is less than a sort.
//
// Gradients: a warp owns a Gaussian, walks its box 32 pixels at a time and adds the lanes in a fixed order.
#include "platform.cuh"
#include "splat.h"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = 16, COLUMNS = 32;  // of a tile; y is contiguous
constexpr int MINE = ROWS / WARPS;      // rows of a thread
constexpr int CAPACITY = 2 * THREADS;
constexpr int PARAMETERS = 7;
constexpr int SUMS = 7;
constexpr int64_t BLOCKS_PER_LAUNCH = int64_t(1) << 20;
constexpr float KAPPA2 = 0.72134752044448170368f;  // exp(-q / 2) = 2^(-KAPPA2 q)

// Inverse factor: z1 = a dx, z2 = b dx + c dy; and how far the ellipse reaches.
struct Ellipse {
    float mu_x, mu_y, a, b, c, reach_x, reach_y;
};

HD Ellipse load_ellipse(const float* p, float cutoff) {
    Ellipse e;
    e.mu_x = p[0];
    e.mu_y = p[1];
    e.a = 1.0f / p[2];
    e.c = 1.0f / p[4];
    e.b = -p[3] * e.a * e.c;
    e.reach_x = cutoff * p[2];
    e.reach_y = cutoff * sqrtf(p[3] * p[3] + p[4] * p[4]);
    return e;
}

// Pixels from low to high that may lie within reach of the centre; a little more is never wrong.
HD void span(float centre, float reach, int n, int& low, int& high) {
    const float slack = 1e-3f + 1e-6f * fabsf(centre);
    const float first = fmaxf(ceilf(centre - reach - slack), 0.0f);
    low = first < float(n) ? int(first) : n;
    const float last = fminf(floorf(centre + reach + slack), float(n - 1));
    high = last < 0.0f ? -1 : int(last);
}

__global__ void __launch_bounds__(THREADS)
add_to_frames(const float* __restrict__ parameters, int64_t n, int nx, int ny, int64_t first_block, float cutoff,
              float level, float* __restrict__ planes) {
    __shared__ float4 head[CAPACITY];  // centre from the tile's corner, a, b
    __shared__ float4 tail[CAPACITY];  // c, re, im
    __shared__ int counts[WARPS];
    const int tiles_x = (nx + ROWS - 1) / ROWS, tiles_y = (ny + COLUMNS - 1) / COLUMNS;
    const int64_t block = first_block + blockIdx.x;
    const int tile_y = int(block % tiles_y), tile_x = int(block / tiles_y % tiles_x);
    const int64_t frame = block / (int64_t(tiles_x) * tiles_y);
    const int corner_x = tile_x * ROWS, corner_y = tile_y * COLUMNS;
    const int thread = threadIdx.x, warp = thread / WARP;
    const float* own = parameters + frame * n * PARAMETERS;

    const float y = float(lane_index());
    float re[MINE] = {}, im[MINE] = {};
    int n_kept = 0;
    for (int64_t base = 0; base < n; base += THREADS) {
        bool keep = false;
        Ellipse e{};
        const float* p = own + (base + thread) * PARAMETERS;
        if (base + thread < n) {
            e = load_ellipse(p, cutoff);
            e.mu_x -= float(corner_x);
            e.mu_y -= float(corner_y);
            const float slack = 1e-3f + 1e-6f * (float(nx) + float(ny));  // rounding must not cull
            keep = e.mu_x + e.reach_x + slack >= 0.0f && e.mu_x - e.reach_x - slack <= float(ROWS - 1) &&
                   e.mu_y + e.reach_y + slack >= 0.0f && e.mu_y - e.reach_y - slack <= float(COLUMNS - 1);
        }
        int n_new;
        const int slot = n_kept + block_rank<WARPS>(keep, counts, n_new);
        if (keep) {
            head[slot] = make_float4(e.mu_x, e.mu_y, e.a, e.b);
            tail[slot] = make_float4(e.c, p[5], p[6], 0.0f);
        }
        n_kept += n_new;
        if (n_kept <= CAPACITY - THREADS && base + THREADS < n) continue;  // the same for all threads
        __syncthreads();
        for (int i = 0; i < n_kept; ++i) {
            const float4 h = head[i], t = tail[i];
            const float cy = t.x * (y - h.y);
#pragma unroll
            for (int k = 0; k < MINE; ++k) {
                const float dx = float(warp * MINE + k) - h.x;
                const float z1 = h.z * dx, z2 = fmaf(h.w, dx, cy);
                const float w = fmaxf(power_of_two(-KAPPA2 * fmaf(z2, z2, z1 * z1)) - level, 0.0f);
                re[k] = fmaf(w, t.y, re[k]);
                im[k] = fmaf(w, t.z, im[k]);
            }
        }
        __syncthreads();
        n_kept = 0;
    }

    const int py = corner_y + int(y);
    if (py >= ny) return;
    const int64_t plane = int64_t(nx) * ny;
#pragma unroll
    for (int k = 0; k < MINE; ++k) {
        const int px = corner_x + warp * MINE + k;
        if (px >= nx) break;
        float* pixel = planes + 2 * frame * plane + int64_t(px) * ny + py;
        pixel[0] += re[k];
        pixel[plane] += im[k];
    }
}

__global__ void __launch_bounds__(THREADS, 8)
gradient_of_frames(const float* __restrict__ parameters, const float* __restrict__ planes, int64_t n,
                   unsigned blocks_of_frame, int64_t first_frame, int nx, int ny, float cutoff, float level,
                   float* __restrict__ out) {
    const unsigned later = blockIdx.x / blocks_of_frame;  // frames after the first
    const int64_t number = int64_t(blockIdx.x - later * blocks_of_frame) * WARPS + threadIdx.x / WARP;
    if (number >= n) return;  // whole warps; nothing below waits for another warp
    const int64_t task = (first_frame + later) * n + number;
    const float* p = parameters + task * PARAMETERS;
    const Ellipse e = load_ellipse(p, cutoff);
    const float re = p[5], im = p[6];
    int low_x, high_x, low_y, high_y;
    span(e.mu_x, e.reach_x, nx, low_x, high_x);
    span(e.mu_y, e.reach_y, ny, low_y, high_y);
    const int side_x = high_x - low_x + 1, side_y = high_y - low_y + 1;
    const int lane = lane_index();
    float sums[SUMS] = {};
    if (side_x > 0 && side_y > 0) {
        // y fastest; the place advances by 32 pixels, with a carry.
        const int64_t plane = int64_t(nx) * ny;
        const float* frame = planes + 2 * (first_frame + later) * plane;
        const int step_x = WARP / side_y, step_y = WARP % side_y;
        int x = lane / side_y, y = lane % side_y;
        while (x < side_x) {
            const int64_t pixel = int64_t(low_x + x) * ny + low_y + y;
            const float dx = float(low_x + x) - e.mu_x, dy = float(low_y + y) - e.mu_y;
            const float z1 = e.a * dx, z2 = fmaf(e.b, dx, e.c * dy);
            const float value = power_of_two(-KAPPA2 * fmaf(z2, z2, z1 * z1));
            if (value > level) {
                const float w = value - level, g_re = frame[pixel], g_im = frame[plane + pixel];
                // Minus twice the derivative by q.
                const float d = value * fmaf(g_re, re, g_im * im), dz = d * z2;
                sums[0] = fmaf(w, g_re, sums[0]);
                sums[1] = fmaf(w, g_im, sums[1]);
                sums[2] = fmaf(d, dx, sums[2]);
                sums[3] = fmaf(d, dx * dx, sums[3]);
                sums[4] += dz;
                sums[5] = fmaf(dz, dx, sums[5]);
                sums[6] = fmaf(dz, z2, sums[6]);
            }
            x += step_x;
            y += step_y;
            if (y >= side_y) y -= side_y, ++x;
        }
    }
#pragma unroll
    for (int k = 0; k < SUMS; ++k) sums[k] = warp_sum(sums[k]);
    if (lane != 0) return;
    const float d_a = -e.a * sums[3], d_b = -sums[5], d_c = -(sums[6] - e.b * sums[5]) * p[4];
    float* target = out + task * PARAMETERS;
    target[0] = e.a * e.a * sums[2] + e.b * sums[4];
    target[1] = e.c * sums[4];
    target[2] = -e.a * (e.a * d_a + e.b * d_b);
    target[3] = -e.a * e.c * d_b;
    target[4] = -e.c * (e.c * d_c + e.b * d_b);
    target[5] = sums[0];
    target[6] = sums[1];
}

bool out_of_range(int64_t n_frames, int64_t n, int64_t nx, int64_t ny) {
    constexpr int64_t side = 1 << 20;
    return n_frames < 0 || n < 0 || nx < 1 || ny < 1 || nx > side || ny > side || n_frames > (int64_t(1) << 31) ||
           n > (int64_t(1) << 31);
}

}  // namespace

extern "C" int64_t gsrecon_splat2d(const void* parameters, void* planes, int64_t n_frames, int64_t n, int64_t nx,
                                   int64_t ny, double cutoff, int64_t stream) {
    if (out_of_range(n_frames, n, nx, ny)) return GSRECON_OUT_OF_RANGE;
    const int64_t n_blocks = n == 0 ? 0 : n_frames * ((nx + ROWS - 1) / ROWS) * ((ny + COLUMNS - 1) / COLUMNS);
    const float level = float(std::exp(-0.5 * cutoff * cutoff));
    const auto queue = reinterpret_cast<cudaStream_t>(stream);
    for (int64_t block = 0; block < n_blocks; block += BLOCKS_PER_LAUNCH) {
        const int64_t here = n_blocks - block < BLOCKS_PER_LAUNCH ? n_blocks - block : BLOCKS_PER_LAUNCH;
        LAUNCH(add_to_frames, unsigned(here), THREADS, queue, static_cast<const float*>(parameters), n, int(nx),
               int(ny), block, float(cutoff), level, static_cast<float*>(planes));
    }
    return cudaGetLastError();
}

extern "C" int64_t gsrecon_splat2d_gradient(const void* parameters, const void* planes, void* out, int64_t n_frames,
                                            int64_t n, int64_t nx, int64_t ny, double cutoff, int64_t stream) {
    if (out_of_range(n_frames, n, nx, ny)) return GSRECON_OUT_OF_RANGE;
    const int64_t of_frame = (n + WARPS - 1) / WARPS;
    const int64_t at_once = of_frame && of_frame < BLOCKS_PER_LAUNCH ? BLOCKS_PER_LAUNCH / of_frame : 1;
    const float level = float(std::exp(-0.5 * cutoff * cutoff));
    const auto queue = reinterpret_cast<cudaStream_t>(stream);
    for (int64_t frame = 0; n > 0 && frame < n_frames; frame += at_once) {
        const int64_t here = n_frames - frame < at_once ? n_frames - frame : at_once;
        LAUNCH(gradient_of_frames, unsigned(here * of_frame), THREADS, queue, static_cast<const float*>(parameters),
               static_cast<const float*>(planes), n, unsigned(of_frame), frame, int(nx), int(ny), float(cutoff),
               level, static_cast<float*>(out));
    }
    return cudaGetLastError();
}

// Real 2D Gaussians on images: the kernels of gpu/splat2d.py for a device.
//
// Gaussian i of n = gx gy is at home at the centre of cell (i / gy, i % gy) of a gx x gy grid over the image, and
// `reach` bounds, in pixels, how far from there any pixel lies that it touches. A block owns a tile of 16 x 16 pixels,
// takes the Gaussians of the homes within reach 256 at a time, culls and compacts them in order into shared memory, and
// every thread adds them to its pixel. Gradients: one warp per Gaussian walks its box. No atomics anywhere: the same
// bits every time.
#include "platform.cuh"
#include "splat.h"

namespace {

constexpr int SIDE = 16;
constexpr int THREADS = SIDE * SIDE;
constexpr int WARPS = THREADS / WARP;
constexpr int NUMBERS = 7;  // x, y, l11, l21, l22, weight, unused: as splat2d.PARAMETERS
constexpr float TO_EXP2 = -0.72134752044448170f;

struct Ellipse {
    float x, y, a, b, c, w, reach_x, reach_y;
};

// z1 = a dx, z2 = b dx + c dy; half sides of the box.
__device__ __forceinline__ Ellipse ellipse_of(const float* p, float cutoff) {
    const float a = 1.0f / p[2], c = 1.0f / p[4];
    return {p[0], p[1], a, -p[3] * a * c, c, p[5], cutoff * p[2], cutoff * sqrtf(fmaf(p[3], p[3], p[4] * p[4]))};
}

__device__ __forceinline__ int clamped(float value, int low, int high) {
    // Compared as floats: a float beyond int has no int.
    return value < float(low) ? low : value > float(high) ? high : int(value);
}

// First and last home along an axis of g cells over n pixels within reach of the pixels from..to.
__device__ __forceinline__ void homes(int from, int to, float reach, int g, int n, int* first, int* last) {
    const float per_pixel = float(g) / float(n);
    *first = clamped(floorf((from + 0.5f - reach) * per_pixel - 0.5f), 0, g - 1);
    *last = clamped(ceilf((to + 0.5f + reach) * per_pixel - 0.5f), 0, g - 1);
}

__global__ void __launch_bounds__(THREADS)
render(const float* __restrict__ parameters, float* __restrict__ image, int gx, int gy, int nx, int ny, int tiles_x,
       int tiles_y, float reach, float cutoff, float level) {
    __shared__ Ellipse some[THREADS];
    __shared__ int counts[WARPS];
    const int tile = blockIdx.x % (tiles_x * tiles_y);
    const int64_t b = blockIdx.x / (tiles_x * tiles_y);
    const int x0 = tile / tiles_y * SIDE, y0 = tile % tiles_y * SIDE;
    const int x1 = (x0 + SIDE < nx ? x0 + SIDE : nx) - 1, y1 = (y0 + SIDE < ny ? y0 + SIDE : ny) - 1;
    const int px = x0 + threadIdx.x / SIDE, py = y0 + threadIdx.x % SIDE;
    int first_x, last_x, first_y, last_y;
    homes(x0, x1, reach, gx, nx, &first_x, &last_x);
    homes(y0, y1, reach, gy, ny, &first_y, &last_y);
    const int row = last_y - first_y + 1;
    const int64_t n = int64_t(last_x - first_x + 1) * row;
    const float* mine = parameters + b * gx * gy * NUMBERS;

    float sum = 0.0f;
    for (int64_t begin = 0; begin < n; begin += THREADS) {
        const int64_t k = begin + threadIdx.x;
        Ellipse e = {};
        bool touches = false;
        if (k < n) {
            e = ellipse_of(mine + ((first_x + k / row) * gy + first_y + k % row) * NUMBERS, cutoff);
            touches = e.x + e.reach_x >= x0 && e.x - e.reach_x <= x1 && e.y + e.reach_y >= y0 && e.y - e.reach_y <= y1;
        }
        const unsigned votes = __ballot_sync(ALL_LANES, touches);
        const int warp = threadIdx.x / WARP;
        if (lane_index() == 0) counts[warp] = __popc(votes);
        __syncthreads();
        int place = __popc(votes & lanes_below()), total = 0;
        for (int w = 0; w < WARPS; ++w) {
            if (w < warp) place += counts[w];
            total += counts[w];
        }
        if (touches) some[place] = e;
        __syncthreads();
        for (int i = 0; i < total; ++i) {
            const Ellipse& g = some[i];
            const float dx = px - g.x, dy = py - g.y;
            const float z1 = g.a * dx, z2 = fmaf(g.b, dx, g.c * dy);
            const float t = power_of_two(TO_EXP2 * fmaf(z1, z1, z2 * z2)) - level;
            sum = fmaf(g.w, t > 0.0f ? t : 0.0f, sum);
        }
        __syncthreads();
    }
    if (px <= x1 && py <= y1) image[(b * nx + px) * ny + py] = sum;
}

__global__ void __launch_bounds__(THREADS)
gradients(const float* __restrict__ parameters, const float* __restrict__ grads, float* __restrict__ out, int64_t total,
          int64_t per_image, int nx, int ny, float cutoff, float level) {
    const int64_t j = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (j >= total) return;  // whole warps; nothing below waits for another warp
    const float* p = parameters + j * NUMBERS;
    const Ellipse g = ellipse_of(p, cutoff);
    const float* image = grads + j / per_image * nx * ny;
    const int x0 = clamped(ceilf(g.x - g.reach_x), 0, nx), x1 = clamped(floorf(g.x + g.reach_x) + 1.0f, 0, nx);
    const int y0 = clamped(ceilf(g.y - g.reach_y), 0, ny), y1 = clamped(floorf(g.y + g.reach_y) + 1.0f, 0, ny);
    const int side = y1 > y0 ? y1 - y0 : 1, n = x1 > x0 && y1 > y0 ? (x1 - x0) * side : 0;
    float s_w = 0.0f, s_x = 0.0f, s_xx = 0.0f, s_z = 0.0f, s_zx = 0.0f, s_zz = 0.0f;
    for (int i = lane_index(); i < n; i += WARP) {
        const int x = x0 + i / side, y = y0 + i % side;
        const float dx = x - g.x, dy = y - g.y;
        const float z1 = g.a * dx, z2 = fmaf(g.b, dx, g.c * dy);
        const float e = power_of_two(TO_EXP2 * fmaf(z1, z1, z2 * z2));
        if (e > level) {
            const float v = image[int64_t(x) * ny + y];
            s_w = fmaf(v, e - level, s_w);
            // Minus twice the derivative by q.
            const float d = e * v * g.w, dz = d * z2;
            s_x = fmaf(d, dx, s_x), s_xx = fmaf(d, dx * dx, s_xx);
            s_z += dz, s_zx = fmaf(dz, dx, s_zx), s_zz = fmaf(dz, z2, s_zz);
        }
    }
    s_w = warp_sum(s_w), s_x = warp_sum(s_x), s_xx = warp_sum(s_xx);
    s_z = warp_sum(s_z), s_zx = warp_sum(s_zx), s_zz = warp_sum(s_zz);
    if (lane_index()) return;
    const float d_a = -g.a * s_xx, d_b = -s_zx, d_c = -(s_zz - g.b * s_zx) / g.c;
    float* o = out + j * NUMBERS;
    o[0] = g.a * g.a * s_x + g.b * s_z;
    o[1] = g.c * s_z;
    o[2] = -g.a * (g.a * d_a + g.b * d_b);
    o[3] = -g.a * g.c * d_b;
    o[4] = -g.c * (g.c * d_c + g.b * d_b);
    o[5] = s_w;
    o[6] = 0.0f;
}

}  // namespace

int64_t gsrecon_render2d(const void* parameters, void* image, int64_t batch, int64_t gx, int64_t gy, int64_t nx,
                         int64_t ny, double reach, double cutoff, int64_t stream) {
    const int64_t tiles_x = (nx + SIDE - 1) / SIDE, tiles_y = (ny + SIDE - 1) / SIDE;
    const int64_t blocks = batch * tiles_x * tiles_y;
    if (gx < 1 || gy < 1 || gx * gy >= INT32_MAX || nx * ny >= INT32_MAX || blocks >= INT32_MAX)
        return GSRECON_OUT_OF_RANGE;
    if (blocks == 0) return 0;
    LAUNCH(render, unsigned(blocks), THREADS, reinterpret_cast<cudaStream_t>(stream), static_cast<const float*>(parameters),
           static_cast<float*>(image), int(gx), int(gy), int(nx), int(ny), int(tiles_x), int(tiles_y), float(reach),
           float(cutoff), float(exp(-0.5 * cutoff * cutoff)));
    return cudaGetLastError();
}

int64_t gsrecon_render2d_gradients(const void* parameters, const void* grads, void* out, int64_t batch,
                                   int64_t per_image, int64_t nx, int64_t ny, double cutoff, int64_t stream) {
    const int64_t total = batch * per_image, blocks = (total + WARPS - 1) / WARPS;
    if (per_image < 1 || nx * ny >= INT32_MAX || blocks >= INT32_MAX) return GSRECON_OUT_OF_RANGE;
    if (total == 0) return 0;
    LAUNCH(gradients, unsigned(blocks), THREADS, reinterpret_cast<cudaStream_t>(stream), static_cast<const float*>(parameters),
           static_cast<const float*>(grads), static_cast<float*>(out), total, per_image, int(nx), int(ny),
           float(cutoff), float(exp(-0.5 * cutoff * cutoff)));
    return cudaGetLastError();
}

// The kernels' entry points: raw pointers, sizes and a stream. No torch here, so that nvcc alone compiles every
// kernel and the tests run the same functions on the CPU. All return a CUDA error code, 0 if all went well.
//
// Order of work: prepare; sort_count, (exclusive scan by the caller), sort_scatter once per 8 bits of the keys;
// cell_starts; pack; then forward and moments, (add_segments), finish as often as wanted.
#pragma once

#include <cstdint>

#define GSRECON_OUT_OF_RANGE 100001

extern "C" {
// keys (n,) int32: the cell of each Gaussian; stats int64: 0 invalid Gaussians, 1 voxels of all boxes,
// 2 voxels of the largest box (all zero before), 3 Gaussians that touch a voxel (written by cell_starts).
int64_t gsrecon_prepare(const void* means, const void* covariances, const void* log_weights, void* keys,
                        void* stats, int64_t n, int64_t doubles, int64_t nx, int64_t ny, int64_t nz,
                        double cutoff, int64_t stream);

// One digit of a stable counting sort. counts, offsets (256, n_tiles) int32, n_tiles = ceil(n / 2048).
int64_t gsrecon_sort_count(const void* keys, void* counts, int64_t n, int64_t shift, int64_t stream);
int64_t gsrecon_sort_scatter(const void* keys, const void* values, const void* offsets, void* keys_out,
                             void* values_out, int64_t n, int64_t shift, int64_t first_pass, int64_t stream);

// starts (n_keys + 1,): first position of every key in the sorted keys.
int64_t gsrecon_cell_starts(const void* sorted_keys, void* starts, void* stats, int64_t n, int64_t n_keys,
                            int64_t stream);

// records (n_used, 16) float32.
int64_t gsrecon_pack(const void* means, const void* covariances, const void* log_weights, const void* order,
                     void* records, int64_t n_used, int64_t doubles, int64_t nx, int64_t ny, int64_t nz,
                     double cutoff, int64_t stream);

// sums (1 + n_channels, nz, ny, nx); amplitudes (n_used, n_channels) in sorted order.
int64_t gsrecon_forward(const void* records, const void* starts, const void* amplitudes, void* sums,
                        int64_t n_channels, int64_t nx, int64_t ny, int64_t nz, double cutoff, int64_t stream);

// moments (n_used, 10 + n_channels) for boxes of at most `limit` (< 2^31) voxels. If segmented instead, a row for
// each of n_tasks pieces: owners (n_tasks,) their Gaussians; pieces (n_tasks, 4) int32 their numbers p, for voxels
// p * limit to (p + 1) * limit of the box (x fastest), and the x, y, z of the first of these in the box.
int64_t gsrecon_moments(const void* records, const void* amplitudes, const void* grad_sums, const void* owners,
                        const void* pieces, void* moments, int64_t n_tasks, int64_t segmented, int64_t limit,
                        int64_t n_channels, int64_t nx, int64_t ny, int64_t nz, double cutoff, int64_t stream);

// Rows first[w] to first[w + 1] of `parts` are added, in this order, into row wide[w] of `moments`.
int64_t gsrecon_add_segments(const void* parts, const void* wide, const void* first, void* moments,
                             int64_t n_wide, int64_t n_channels, int64_t stream);

// Gradients in the inputs' order and types (rows of unused Gaussians are left alone).
int64_t gsrecon_finish(const void* means, const void* covariances, const void* log_weights, const void* order,
                       const void* moments, void* grad_means, void* grad_covariances, void* grad_log_weights,
                       void* grad_amplitudes, int64_t n_used, int64_t n_channels, int64_t doubles,
                       int64_t stream);

// Real 2D Gaussians (render2d.cu), apart from all of the above. parameters (batch, gx gy, 7) float32: x, y, l11, l21,
// l22, weight, unused, in pixels of the images (batch, nx, ny); reach: see render2d.cu.
int64_t gsrecon_render2d(const void* parameters, void* image, int64_t batch, int64_t gx, int64_t gy, int64_t nx,
                         int64_t ny, double reach, double cutoff, int64_t stream);

// out (batch, per_image, 7): gradient of the sum of grads (batch, nx, ny) times the images.
int64_t gsrecon_render2d_gradients(const void* parameters, const void* grads, void* out, int64_t batch,
                                   int64_t per_image, int64_t nx, int64_t ny, double cutoff, int64_t stream);

const char* gsrecon_error(int64_t code);
}

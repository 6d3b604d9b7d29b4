// The entry points of splat.h as torch operators, `torch.ops.bids_gsrecon_splat.<name>`.
//
// Every operator writes into tensors its caller allocated and returns nothing; autograd stays in Python, above
// plans. torch's CUDA headers are not needed: streams come in as numbers.
#include <type_traits>

#include <torch/library.h>
#include <torch/types.h>

#include "splat.h"

#ifndef GSRECON_DEVICE
#define GSRECON_DEVICE CUDA  // the tests build this file for the CPU, against the kernels' CPU shim
#endif

namespace {

// Pointers of an entry point are tensors of the operator.
template <class T>
using Argument = std::conditional_t<std::is_pointer_v<T>, const at::Tensor&, T>;

void* convert(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.is_contiguous(), "the splat kernels take contiguous tensors");
    return tensor.data_ptr();
}
int64_t convert(int64_t value) { return value; }
double convert(double value) { return value; }

template <auto function>
struct Operator;

template <class... T, int64_t (*function)(T...)>
struct Operator<function> {
    static void call(Argument<T>... arguments) {
        const int64_t code = function(convert(arguments)...);
        TORCH_CHECK(code == 0, "a CUDA kernel failed: ", gsrecon_error(code));
    }
    // For fake tensors: the outputs exist already, with their shapes.
    static void fake(Argument<T>...) {}
};

#define SIZES "int nx, int ny, int nz, float cutoff, int stream) -> ()"
#define GEOMETRY "Tensor means, Tensor covariances, Tensor log_weights, "

constexpr const char* SCHEMAS[] = {
    "prepare(" GEOMETRY "Tensor(a!) keys, Tensor(b!) stats, int n, int doubles, " SIZES,
    "sort_count(Tensor keys, Tensor(a!) counts, int n, int shift, int stream) -> ()",
    "sort_scatter(Tensor keys, Tensor values, Tensor offsets, Tensor(a!) keys_out, Tensor(b!) values_out, int n, "
    "int shift, int first_pass, int stream) -> ()",
    "cell_starts(Tensor sorted_keys, Tensor(a!) starts, Tensor(b!) stats, int n, int n_keys, int stream) -> ()",
    "pack(" GEOMETRY "Tensor order, Tensor(a!) records, int n_used, int doubles, " SIZES,
    "forward(Tensor records, Tensor starts, Tensor amplitudes, Tensor(a!) sums, int n_channels, " SIZES,
    "moments(Tensor records, Tensor amplitudes, Tensor grad_sums, Tensor owners, Tensor pieces, "
    "Tensor(a!) moments, int n_tasks, int segmented, int limit, int n_channels, " SIZES,
    "add_segments(Tensor parts, Tensor wide, Tensor first, Tensor(a!) moments, int n_wide, int n_channels, "
    "int stream) -> ()",
    "finish(" GEOMETRY "Tensor order, Tensor moments, Tensor(a!) grad_means, Tensor(b!) grad_covariances, "
    "Tensor(c!) grad_log_weights, Tensor(d!) grad_amplitudes, int n_used, int n_channels, int doubles, "
    "int stream) -> ()",
    "render2d(Tensor parameters, Tensor(a!) image, int batch, int gx, int gy, int nx, int ny, float reach, "
    "float cutoff, int stream) -> ()",
    "render2d_gradients(Tensor parameters, Tensor grads, Tensor(a!) out, int batch, int per_image, int nx, int ny, "
    "float cutoff, int stream) -> ()",
};

#define REGISTER(kind)                                          \
    m.impl("prepare", &Operator<gsrecon_prepare>::kind);           \
    m.impl("sort_count", &Operator<gsrecon_sort_count>::kind);     \
    m.impl("sort_scatter", &Operator<gsrecon_sort_scatter>::kind); \
    m.impl("cell_starts", &Operator<gsrecon_cell_starts>::kind);   \
    m.impl("pack", &Operator<gsrecon_pack>::kind);                 \
    m.impl("forward", &Operator<gsrecon_forward>::kind);           \
    m.impl("moments", &Operator<gsrecon_moments>::kind);           \
    m.impl("add_segments", &Operator<gsrecon_add_segments>::kind); \
    m.impl("finish", &Operator<gsrecon_finish>::kind);             \
    m.impl("render2d", &Operator<gsrecon_render2d>::kind);         \
    m.impl("render2d_gradients", &Operator<gsrecon_render2d_gradients>::kind);

}  // namespace

TORCH_LIBRARY(bids_gsrecon_splat, m) {
    for (const char* schema : SCHEMAS) m.def(schema);
}
TORCH_LIBRARY_IMPL(bids_gsrecon_splat, GSRECON_DEVICE, m) { REGISTER(call) }
TORCH_LIBRARY_IMPL(bids_gsrecon_splat, Meta, m) { REGISTER(fake) }

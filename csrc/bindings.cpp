// The only pybind11 file: integers in, nothing out, no maths. advfast/kernels/*/native.py is the only caller; tensors
// are checked and kept alive there.

#include "advfast.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

namespace py = pybind11;
using namespace advfast;

namespace {

using Address = uintptr_t;                           // 0: none
using Op = std::tuple<Address, int, double>;         // data, mode, value
using Shape = std::tuple<int64_t, int64_t, int64_t>; // batch, channels, spatial

template <class T> T* pointer(Address address) { return reinterpret_cast<T*>(address); }

Operand operand(const Op& op) {
    return {pointer<const void>(std::get<0>(op)), static_cast<Mode>(std::get<1>(op)), std::get<2>(op)};
}

PgdStepArgs step_args(Address x, Address grad, Address x0, Address out, Address nonfinite, Address scratch, Shape shape,
                      int layout, int out_layout, int x_dtype, int grad_dtype, int out_dtype, int norm, bool box_first,
                      bool affine, const Op& alpha, const Op& eps, const Op& lo, const Op& hi, const Op& mask,
                      const Op& scale, const Op& shift) {
    PgdStepArgs args;
    args.x = pointer<void>(x);
    args.grad = pointer<const void>(grad);
    args.x0 = pointer<const void>(x0);
    args.out = pointer<void>(out);
    args.nonfinite = pointer<int64_t>(nonfinite);
    args.scratch = pointer<void>(scratch);
    std::tie(args.batch, args.channels, args.spatial) = shape;
    args.layout = static_cast<Layout>(layout);
    args.out_layout = static_cast<Layout>(out_layout);
    args.x_dtype = static_cast<DType>(x_dtype);
    args.grad_dtype = static_cast<DType>(grad_dtype);
    args.out_dtype = static_cast<DType>(out_dtype);
    args.norm = static_cast<Norm>(norm);
    args.box_first = box_first;
    args.affine = affine;
    args.alpha = operand(alpha);
    args.eps = operand(eps);
    args.lo = operand(lo);
    args.hi = operand(hi);
    args.mask = operand(mask);
    args.scale = operand(scale);
    args.shift = operand(shift);
    return args;
}

RandomStartArgs start_args(Address x, Address x0, Address seed, Address sample_ids, Shape shape, uint32_t offset,
                           int layout, int dtype, int norm, const Op& eps, const Op& lo, const Op& hi) {
    RandomStartArgs args;
    args.x = pointer<void>(x);
    args.x0 = pointer<const void>(x0);
    args.seed = pointer<const int64_t>(seed);
    args.sample_ids = pointer<const int64_t>(sample_ids);
    std::tie(args.batch, args.channels, args.spatial) = shape;
    args.offset = offset;
    args.layout = static_cast<Layout>(layout);
    args.dtype = static_cast<DType>(dtype);
    args.norm = static_cast<Norm>(norm);
    args.eps = operand(eps);
    args.lo = operand(lo);
    args.hi = operand(hi);
    return args;
}

ConvInputGradArgs conv_args(Address grad, Address weight, Address out, std::array<int64_t, 3> batch,
                            std::array<int64_t, 4> sides, std::array<int64_t, 2> kernel, std::array<int64_t, 2> stride,
                            std::array<int64_t, 2> padding, int grad_layout, int layout) {
    ConvInputGradArgs args;
    args.grad = pointer<const float>(grad);
    args.weight = pointer<const float>(weight);
    args.out = pointer<float>(out);
    args.batch = batch[0], args.inputs = batch[1], args.outputs = batch[2];
    args.height = sides[0], args.width = sides[1], args.out_h = sides[2], args.out_w = sides[3];
    args.kernel_h = kernel[0], args.kernel_w = kernel[1];
    args.stride_h = stride[0], args.stride_w = stride[1];
    args.pad_h = padding[0], args.pad_w = padding[1];
    args.grad_layout = static_cast<Layout>(grad_layout);
    args.layout = static_cast<Layout>(layout);
    return args;
}

ActivationArgs activation_args(Address x, Address other, Address scale, Address shift, Address y, Address bits,
                               int64_t values, int64_t channels, int64_t spatial, int layout, int dtype) {
    ActivationArgs args;
    args.x = pointer<const void>(x);
    args.other = pointer<const void>(other);
    args.scale = pointer<const float>(scale);
    args.shift = pointer<const float>(shift);
    args.y = pointer<void>(y);
    args.bits = pointer<uint8_t>(bits);
    args.values = values, args.channels = channels, args.spatial = spatial;
    args.layout = static_cast<Layout>(layout);
    args.dtype = static_cast<DType>(dtype);
    return args;
}

RowHashArgs hash_args(Address x, Address out, int64_t batch, int64_t dim, int dtype) {
    RowHashArgs args;
    args.x = pointer<const void>(x);
    args.out = pointer<int64_t>(out);
    args.batch = batch, args.dim = dim;
    args.dtype = static_cast<DType>(dtype);
    return args;
}

HyperplaneArgs hyperplane_args(Address points, Address w, Address b, Address out, int64_t batch, int64_t dim, int dtype,
                               int norm) {
    HyperplaneArgs args;
    args.points = pointer<const void>(points);
    args.w = pointer<const void>(w);
    args.b = pointer<const double>(b);
    args.out = pointer<void>(out);
    args.batch = batch, args.dim = dim;
    args.dtype = static_cast<DType>(dtype);
    args.norm = static_cast<Norm>(norm);
    return args;
}

SquareArgs square_args(Address best, Address other, Address out, Address places, Address signs, Address improved,
                       std::array<int64_t, 4> shape, std::array<int64_t, 2> window, double eps, int layout, int dtype) {
    SquareArgs args;
    args.best = pointer<const void>(best), args.other = pointer<const void>(other), args.out = pointer<void>(out);
    args.places = pointer<const int64_t>(places);
    args.signs = pointer<const void>(signs);
    args.improved = pointer<const uint8_t>(improved);
    args.batch = shape[0], args.channels = shape[1], args.height = shape[2], args.width = shape[3];
    args.window_h = window[0], args.window_w = window[1];
    args.eps = eps;
    args.layout = static_cast<Layout>(layout);
    args.dtype = static_cast<DType>(dtype);
    return args;
}

ApgdStepArgs apgd_args(Address x, Address x_prev, Address x0, Address grad, Address step, Address improved,
                       Address best, Address best_grad, int64_t batch, int64_t dim, int dtype, int norm,
                       double momentum, double eps) {
    ApgdStepArgs args;
    args.x = pointer<const void>(x), args.x_prev = pointer<void>(x_prev), args.x0 = pointer<const void>(x0);
    args.grad = pointer<const void>(grad), args.step = pointer<const void>(step);
    args.improved = pointer<const uint8_t>(improved);
    args.best = pointer<void>(best), args.best_grad = pointer<void>(best_grad);
    args.batch = batch, args.dim = dim;
    args.dtype = static_cast<DType>(dtype), args.norm = static_cast<Norm>(norm);
    args.momentum = momentum, args.eps = eps;
    return args;
}

ApgdL1Args apgd_l1_args(Address x, Address x0, Address grad, Address step, Address rank, Address out, int64_t batch,
                        int64_t dim, int dtype, double eps) {
    ApgdL1Args args;
    args.x = pointer<const void>(x), args.x0 = pointer<const void>(x0), args.grad = pointer<const void>(grad);
    args.step = pointer<const void>(step), args.rank = pointer<const int64_t>(rank), args.out = pointer<void>(out);
    args.batch = batch, args.dim = dim;
    args.dtype = static_cast<DType>(dtype);
    args.eps = eps;
    return args;
}

using Side = std::tuple<Address, Address, Address, int64_t, int64_t, int64_t, int64_t>; // members of NtkSide

NtkSide ntk_side(const Side& given) {
    NtkSide side;
    Address x, g, taps;
    std::tie(x, g, taps, side.n, side.readouts, side.pixels, side.positions) = given;
    side.x = pointer<const float>(x), side.g = pointer<const float>(g), side.taps = pointer<const int32_t>(taps);
    return side;
}

NtkArgs ntk_args(Address out, int64_t out_stride, const Side& left, const Side& right, std::array<int64_t, 4> layer,
                 bool upper, int precision) {
    NtkArgs args;
    args.out = pointer<float>(out), args.out_stride = out_stride;
    args.left = ntk_side(left), args.right = ntk_side(right);
    args.groups = layer[0], args.c = layer[1], args.e = layer[2], args.taps = layer[3];
    args.upper = upper, args.precision = static_cast<Precision>(precision);
    return args;
}

template <class Args, class... Rest> py::cpp_function on_cpu(Args (*build)(Rest...), void (*run)(const Args&, int)) {
    return py::cpp_function([build, run](int threads, Rest... rest) {
        const Args args = build(rest...);
        py::gil_scoped_release release;
        run(args, threads);
    });
}

#if defined(ADVFAST_WITH_CUDA)
// The GIL is kept: a launch takes microseconds.
template <class Args, class... Rest>
py::cpp_function on_cuda(Args (*build)(Rest...), void (*run)(const Args&, int, void*)) {
    return py::cpp_function(
        [build, run](int device, Address stream, Rest... rest) { run(build(rest...), device, pointer<void>(stream)); });
}
#endif

} // namespace

PYBIND11_MODULE(_C, m) {
    m.attr("pgd_step_cpu") = on_cpu(step_args, pgd_step_cpu);
    m.attr("random_start_cpu") = on_cpu(start_args, random_start_cpu);
    m.attr("conv_input_grad_cpu") = on_cpu(conv_args, conv_input_grad_cpu);
    m.attr("relu_bits_cpu") = on_cpu(activation_args, relu_bits_cpu);
    m.attr("gate_cpu") = on_cpu(activation_args, gate_cpu);
    m.attr("row_hash_cpu") = on_cpu(hash_args, row_hash_cpu);
    m.attr("hyperplane_project_cpu") = on_cpu(hyperplane_args, hyperplane_project_cpu);
    m.attr("square_window_cpu") = on_cpu(square_args, square_window_cpu);
    m.attr("square_accept_cpu") = on_cpu(square_args, square_accept_cpu);
    m.attr("apgd_step_cpu") = on_cpu(apgd_args, apgd_step_cpu);
    m.attr("apgd_l1_cpu") = on_cpu(apgd_l1_args, apgd_l1_cpu);
    m.attr("ntk_rows_cpu") = on_cpu(ntk_args, ntk_rows_cpu);
    m.attr("ntk_patch_gram_cpu") = on_cpu(ntk_args, ntk_patch_gram_cpu);
    m.attr("ntk_chain_cpu") = on_cpu(ntk_args, ntk_chain_cpu);
    m.attr("ntk_hadamard_cpu") = on_cpu(ntk_args, ntk_hadamard_cpu);
#if defined(ADVFAST_WITH_CUDA)
    m.attr("pgd_step_cuda") = on_cuda(step_args, pgd_step_cuda);
    m.attr("random_start_cuda") = on_cuda(start_args, random_start_cuda);
    m.attr("ntk_chain_cuda") = on_cuda(ntk_args, ntk_chain_cuda);
    m.attr("ntk_hadamard_cuda") = on_cuda(ntk_args, ntk_hadamard_cuda);
    m.def("pgd_scratch_bytes", [](int64_t batch, int64_t dim, int norm) {
        PgdStepArgs args;
        args.batch = batch;
        args.spatial = dim;
        args.norm = static_cast<Norm>(norm);
        return pgd_scratch_bytes(args);
    });
#endif
    m.def("cpu_isa", &cpu_isa);
    m.def("set_cpu_isa", &set_cpu_isa);
    m.def("build_info", [] {
        py::dict info;
        info["version"] = ADVFAST_VERSION;
        info["commit"] = ADVFAST_COMMIT;
        info["compiler"] = ADVFAST_COMPILER;
        info["cuda_version"] = ADVFAST_CUDA_VERSION;
        info["cuda_archs"] = ADVFAST_CUDA_ARCH_LIST;
        return info;
    });
}

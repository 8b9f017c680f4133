// Binds ops.h: unpacks Python arguments, releases the GIL, and nothing else.
//
// An array comes as three arguments: data_ptr, shape and stride, both (n, c, *spatial).
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>
#include <type_traits>

#include "cpu/isa.h"
#include "ops.h"

namespace py = pybind11;

namespace backsight {
namespace {

py::handle entry(const py::handle& sequence, Py_ssize_t i) {
  return PySequence_Fast_GET_ITEM(sequence.ptr(), i);
}

int64_t item(const py::handle& sequence, Py_ssize_t i) {
  const int64_t value = PyLong_AsLongLong(entry(sequence, i).ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

Py_ssize_t length(const py::handle& sequence) {
  if (!PyTuple_Check(sequence.ptr()) && !PyList_Check(sequence.ptr()))
    throw py::type_error("expected a tuple or list of ints");
  return PySequence_Fast_GET_SIZE(sequence.ptr());
}

// D values, padded in front to kAxes.
void fill_axes(int64_t (&to)[kAxes], const py::handle& from, Py_ssize_t skip, int64_t padding) {
  const Py_ssize_t dims = length(from) - skip;
  if (dims < 1 || dims > kAxes)
    throw py::value_error("expected 1 to 3 spatial axes, got " + std::to_string(dims));
  for (int axis = 0; axis < kAxes; ++axis) {
    const Py_ssize_t column = axis - (kAxes - dims);
    to[axis] = column < 0 ? padding : item(from, skip + column);
  }
}

View view(uintptr_t data, const py::handle& shape, const py::handle& stride) {
  View v;
  v.data = reinterpret_cast<char*>(data);
  fill_axes(v.size, shape, 2, 1);
  fill_axes(v.stride, stride, 2, 0);
  v.n = item(shape, 0);
  v.c = item(shape, 1);
  v.stride_n = item(stride, 0);
  v.stride_c = item(stride, 1);
  return v;
}

const int64_t* int64s(uintptr_t data) { return reinterpret_cast<const int64_t*>(data); }

OccludeParams occlude_params(int dtype, uintptr_t image, py::handle image_shape,
                             py::handle image_stride, uintptr_t baseline,
                             py::handle baseline_stride, uintptr_t boxes, int64_t copies,
                             uintptr_t out, py::handle out_shape, py::handle out_stride) {
  OccludeParams p;
  p.dtype = static_cast<DType>(dtype);
  p.image = view(image, image_shape, image_stride);
  p.baseline = view(baseline, image_shape, baseline_stride);
  p.out = view(out, out_shape, out_stride);
  p.copies = copies;
  p.boxes = int64s(boxes);
  p.dims = static_cast<int>(length(out_shape)) - 2;
  return p;
}

PreactivationParams preactivation_params(int dtype, py::handle maps, py::handle map_shapes,
                                         py::handle map_strides, uintptr_t scale, uintptr_t shift,
                                         uintptr_t out, py::handle out_shape,
                                         py::handle out_stride) {
  PreactivationParams p;
  p.dtype = static_cast<DType>(dtype);
  const Py_ssize_t count = length(maps);
  if (length(map_shapes) != count || length(map_strides) != count)
    throw py::value_error("expected a shape and a stride for each map");
  for (Py_ssize_t i = 0; i < count; ++i)
    p.maps.push_back(
        view(static_cast<uintptr_t>(item(maps, i)), entry(map_shapes, i), entry(map_strides, i)));
  p.out = view(out, out_shape, out_stride);
  p.scale = reinterpret_cast<const char*>(scale);
  p.shift = reinterpret_cast<const char*>(shift);
  return p;
}

ReluParams relu_params(int dtype, uintptr_t x, uintptr_t y, uintptr_t bits, int64_t rows,
                       int64_t length_of_row) {
  ReluParams p;
  p.dtype = static_cast<DType>(dtype);
  p.x = reinterpret_cast<const char*>(x);
  p.y = reinterpret_cast<char*>(y);
  p.bits = reinterpret_cast<uint8_t*>(bits);
  p.rows = rows;
  p.length = length_of_row;
  return p;
}

RectifyParams rectify_params(int dtype, int rule, bool channels_last, uintptr_t grad,
                             py::handle shape, uintptr_t bits, int64_t maps, py::handle tile,
                             py::handle base_at, py::handle extent, uintptr_t base_index,
                             uintptr_t window_at, uintptr_t out) {
  RectifyParams p;
  p.dtype = static_cast<DType>(dtype);
  p.rule = static_cast<Rule>(rule);
  p.channels_last = channels_last;
  p.grad = reinterpret_cast<const char*>(grad);
  p.out = reinterpret_cast<char*>(out);
  fill_axes(p.size, shape, 2, 1);
  p.n = item(shape, 0);
  p.c = item(shape, 1);
  p.bits = reinterpret_cast<const uint8_t*>(bits);
  p.maps = maps;
  fill_axes(p.tile, tile, 0, 1);
  fill_axes(p.base_at, base_at, 0, 0);
  fill_axes(p.extent, extent, 0, 1);
  p.base_index = int64s(base_index);
  p.window_at = int64s(window_at);
  p.dims = static_cast<int>(length(tile));
  return p;
}

SpliceParams splice_params(int dtype, uintptr_t base, py::handle base_shape, py::handle base_stride,
                           uintptr_t base_index, py::handle base_at, py::handle extent,
                           uintptr_t patch, py::handle patch_shape, py::handle patch_stride,
                           uintptr_t patch_at, uintptr_t window_at, double outside, uintptr_t out,
                           py::handle out_shape, py::handle out_stride) {
  SpliceParams p;
  p.dtype = static_cast<DType>(dtype);
  p.base = view(base, base_shape, base_stride);
  p.patch = view(patch, patch_shape, patch_stride);
  p.out = view(out, out_shape, out_stride);
  fill_axes(p.base_at, base_at, 0, 0);
  fill_axes(p.extent, extent, 0, 1);
  p.base_index = int64s(base_index);
  p.patch_at = int64s(patch_at);
  p.window_at = int64s(window_at);
  p.dims = static_cast<int>(length(out_shape)) - 2;
  p.outside = outside;
  return p;
}

void fill_pool(Pool& pool, const py::handle& kernel, const py::handle& stride,
               const py::handle& padding, const py::handle& dilation) {
  fill_axes(pool.kernel, kernel, 0, 1);
  fill_axes(pool.stride, stride, 0, 1);
  fill_axes(pool.padding, padding, 0, 0);
  fill_axes(pool.dilation, dilation, 0, 1);
  pool.set_steps();
}

MaxPoolParams max_pool_params(int dtype, int switch_bytes, bool relu, py::handle kernel,
                              py::handle stride, py::handle padding, py::handle dilation,
                              uintptr_t x, py::handle x_shape, py::handle x_stride, uintptr_t y,
                              uintptr_t switches, py::handle y_shape, py::handle y_stride) {
  MaxPoolParams p;
  p.dtype = static_cast<DType>(dtype);
  p.switch_bytes = switch_bytes;
  p.relu = relu;
  fill_pool(p.pool, kernel, stride, padding, dilation);
  p.x = view(x, x_shape, x_stride);
  p.y = view(y, y_shape, y_stride);
  p.switches = view(switches, y_shape, y_stride);
  return p;
}

MaxUnpoolParams max_unpool_params(int dtype, int switch_bytes, bool set, bool relu,
                                  py::handle kernel, py::handle stride, py::handle padding,
                                  py::handle dilation, uintptr_t x, py::handle x_shape,
                                  py::handle x_stride, uintptr_t y, py::handle y_shape,
                                  py::handle y_stride, uintptr_t switches,
                                  py::handle switches_shape, py::handle switches_stride,
                                  uintptr_t base_index, uintptr_t y_at, uintptr_t window_at) {
  MaxUnpoolParams p;
  p.dtype = static_cast<DType>(dtype);
  p.switch_bytes = switch_bytes;
  p.set = set;
  p.relu = relu;
  fill_pool(p.pool, kernel, stride, padding, dilation);
  p.x = view(x, x_shape, x_stride);
  p.y = view(y, y_shape, y_stride);
  p.switches = view(switches, switches_shape, switches_stride);
  p.base_index = int64s(base_index);
  p.y_at = int64s(y_at);
  p.window_at = int64s(window_at);
  p.dims = static_cast<int>(length(kernel));
  return p;
}

HeatmapParams heatmap_params(int dtype, uintptr_t scores, uintptr_t boxes, py::handle scores_shape,
                             py::handle size, bool mean, uintptr_t out, uintptr_t workspace) {
  HeatmapParams p;
  p.dtype = static_cast<DType>(dtype);
  p.scores = reinterpret_cast<const char*>(scores);
  p.boxes = int64s(boxes);
  p.n = item(scores_shape, 0);
  p.k = item(scores_shape, 1);
  p.dims = static_cast<int>(length(size));
  fill_axes(p.size, size, 0, 1);
  p.mean = mean;
  p.out = reinterpret_cast<char*>(out);
  p.workspace = reinterpret_cast<char*>(workspace);
  return p;
}

int64_t workspace_of_heatmap(int dtype, py::handle scores_shape, py::handle size) {
  return heatmap_workspace(heatmap_params(dtype, 0, 0, scores_shape, size, false, 0, 0));
}

SubpixelDeconvParams subpixel_deconv_params(int dtype, bool relu, int64_t groups, py::handle kernel,
                                            py::handle stride, py::handle padding,
                                            py::handle dilation, uintptr_t x, py::handle x_shape,
                                            py::handle x_stride, uintptr_t weight, uintptr_t bias,
                                            uintptr_t out, py::handle out_shape,
                                            py::handle out_stride) {
  SubpixelDeconvParams p;
  p.dtype = static_cast<DType>(dtype);
  p.relu = relu;
  p.groups = groups;
  fill_pool(p.pool, kernel, stride, padding, dilation);
  p.x = view(x, x_shape, x_stride);
  p.weight = reinterpret_cast<const char*>(weight);
  p.bias = reinterpret_cast<const char*>(bias);
  p.out = view(out, out_shape, out_stride);
  return p;
}

// A call of subpixel_deconv of which only the arrays' places are left open: taking shapes and
// strides out of Python takes longer than a small kernel.
struct PlannedDeconv {
  SubpixelDeconvParams params;
  void run(int threads, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out) const {
    SubpixelDeconvParams p = params;
    p.x.data = reinterpret_cast<char*>(x);
    p.weight = reinterpret_cast<const char*>(weight);
    p.bias = reinterpret_cast<const char*>(bias);
    p.out.data = reinterpret_cast<char*>(out);
    py::gil_scoped_release release;
    cpu::subpixel_deconv(p, threads);
  }
};

UnpoolDeconvParams unpool_deconv_params(
    int dtype, int switch_bytes, bool set, bool relu, py::handle kernel, py::handle stride,
    py::handle padding, py::handle dilation, py::handle x_shape, py::handle x_stride, uintptr_t y,
    py::handle y_shape, py::handle y_stride, uintptr_t switches, py::handle switches_shape,
    py::handle switches_stride, uintptr_t base_index, uintptr_t y_at, uintptr_t window_at,
    int64_t groups, py::handle deconv_kernel, py::handle deconv_stride, py::handle deconv_padding,
    py::handle deconv_dilation, uintptr_t weight, int64_t weight_input, int64_t weight_channel,
    int64_t weight_tap, uintptr_t bias, uintptr_t out, py::handle out_shape,
    py::handle out_stride) {
  UnpoolDeconvParams p;
  p.unpool = max_unpool_params(dtype, switch_bytes, set, relu, kernel, stride, padding, dilation, 0,
                               x_shape, x_stride, y, y_shape, y_stride, switches, switches_shape,
                               switches_stride, base_index, y_at, window_at);
  p.deconv = subpixel_deconv_params(dtype, false, groups, deconv_kernel, deconv_stride,
                                    deconv_padding, deconv_dilation, 0, x_shape, x_stride, weight,
                                    bias, out, out_shape, out_stride);
  p.weight_input = weight_input;
  p.weight_channel = weight_channel;
  p.weight_tap = weight_tap;
  return p;
}

DeconvInterleaveParams deconv_interleave_params(int dtype, bool relu, uintptr_t phases,
                                                int64_t phases_n, int64_t channel, py::handle cell,
                                                py::handle phase, py::handle stride,
                                                py::handle first, uintptr_t bias, uintptr_t out,
                                                py::handle out_shape, py::handle out_stride) {
  DeconvInterleaveParams p;
  p.dtype = static_cast<DType>(dtype);
  p.relu = relu;
  p.phases = reinterpret_cast<const char*>(phases);
  p.phases_n = phases_n;
  p.channel = channel;
  fill_axes(p.cell, cell, 0, 0);
  fill_axes(p.phase, phase, 0, 0);
  fill_axes(p.stride, stride, 0, 1);
  fill_axes(p.first, first, 0, 0);
  p.bias = reinterpret_cast<const char*>(bias);
  p.out = view(out, out_shape, out_stride);
  return p;
}

// Binds `name`_cpu(threads, ...) and, if the CUDA kernels are built, `name`_cuda(stream, ...).
template <typename Params, typename... Args>
void def_op(py::module_& m, const std::string& name, Params (*params)(Args...),
            void (*on_cpu)(const Params&, int),
            std::common_type_t<void (*)(void*, const Params&)> on_cuda) {
  m.def((name + "_cpu").c_str(), [=](int threads, Args... args) {
    const Params p = params(args...);
    py::gil_scoped_release release;
    on_cpu(p, threads);
  });
  if (on_cuda == nullptr) return;
  m.def((name + "_cuda").c_str(), [=](uintptr_t stream, Args... args) {
    const Params p = params(args...);
    py::gil_scoped_release release;
    on_cuda(reinterpret_cast<void*>(stream), p);
  });
}

}  // namespace
}  // namespace backsight

#ifdef BACKSIGHT_WITH_CUDA
#define CUDA_OR_NULL(f) &f
#else
#define BACKSIGHT_CUDA_ARCHS ""
#define CUDA_OR_NULL(f) nullptr
#endif

PYBIND11_MODULE(_C, m) {
  using namespace backsight;
  m.doc() = "Kernels of backsight; call them through torch.ops.backsight.";
  m.attr("cuda_archs") = BACKSIGHT_CUDA_ARCHS;
  m.def("isa", &cpu::isa);
  m.def("limit_vector_bytes", &cpu::limit_vector_bytes);
#ifdef BACKSIGHT_WITH_CUDA
  m.def("cuda_info", [] {
    const cuda::Info info = cuda::info();
    return py::make_tuple(info.runtime, info.driver, info.devices);
  });
#endif
  // os.environ takes as long as a small kernel to say that something is not there.
  m.def("getenv", [](const char* name) { return std::getenv(name); });
  m.def("digest_cpu", [](int threads, uintptr_t data, int64_t bytes) {
    py::gil_scoped_release release;
    return cpu::digest(reinterpret_cast<const void*>(data), bytes, threads);
  });
  m.def("heatmap_workspace", &workspace_of_heatmap);
  py::class_<PlannedDeconv>(m, "PlannedDeconv")
      .def(py::init([](int dtype, bool relu, int64_t groups, py::handle kernel, py::handle stride,
                       py::handle padding, py::handle dilation, py::handle x_shape,
                       py::handle x_stride, py::handle out_shape, py::handle out_stride) {
        return PlannedDeconv{subpixel_deconv_params(dtype, relu, groups, kernel, stride, padding,
                                                    dilation, 0, x_shape, x_stride, 0, 0, 0,
                                                    out_shape, out_stride)};
      }))
      .def("run", &PlannedDeconv::run);
  def_op(m, "deconv_interleave", &deconv_interleave_params, &cpu::deconv_interleave, nullptr);
  def_op(m, "heatmap", &heatmap_params, &cpu::heatmap, CUDA_OR_NULL(cuda::heatmap));
  def_op(m, "heatmap_phases", &heatmap_params, &cpu::heatmap_phases, nullptr);
  def_op(m, "max_gather", &max_unpool_params, &cpu::max_gather, CUDA_OR_NULL(cuda::max_gather));
  def_op(m, "max_pool", &max_pool_params, &cpu::max_pool, CUDA_OR_NULL(cuda::max_pool));
  def_op(m, "max_unpool", &max_unpool_params, &cpu::max_unpool, CUDA_OR_NULL(cuda::max_unpool));
  def_op(m, "occlude", &occlude_params, &cpu::occlude, CUDA_OR_NULL(cuda::occlude));
  def_op(m, "preactivation", &preactivation_params, &cpu::preactivation,
         CUDA_OR_NULL(cuda::preactivation));
  def_op(m, "rectify", &rectify_params, &cpu::rectify, CUDA_OR_NULL(cuda::rectify));
  def_op(m, "relu", &relu_params, &cpu::relu, CUDA_OR_NULL(cuda::relu));
  def_op(m, "splice", &splice_params, &cpu::splice, CUDA_OR_NULL(cuda::splice));
  def_op(m, "subpixel_deconv", &subpixel_deconv_params, &cpu::subpixel_deconv,
         CUDA_OR_NULL(cuda::subpixel_deconv));
  def_op(m, "unpool_deconv", &unpool_deconv_params, &cpu::unpool_deconv,
         CUDA_OR_NULL(cuda::unpool_deconv));
}

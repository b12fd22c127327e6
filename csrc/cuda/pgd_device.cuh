// What the kernels of the pgd family share: operands, places in a sample, the write of the next model input.
// A step is worth about 400 instructions for every four values before it is slower than memory (H200), so dtypes and
// operand modes are uniform branches here and not template parameters.
#pragma once

#include "../cuda_utils.cuh"
#include "../pgd_math.h"

namespace advfast {

constexpr int kThreads = 256; // of a block, where nothing else is said

// An operand as the kernels take it: its number is rounded to float on the host.
struct Field {
    const void* data = nullptr;
    float value = 0.0f;
    Mode mode = Mode::value;

    Field() = default;
    explicit Field(const Operand& op) : data(op.data), value(static_cast<float>(op.value)), mode(op.mode) {}
    bool number() const { return mode == Mode::value || mode == Mode::scalar; }
    bool by_channel() const { return mode == Mode::channel; }
    bool by_sample() const { return mode == Mode::sample; }
    // Whether V values can be loaded at once; `bytes`: size of one.
    bool wide(int values, int bytes) const {
        return mode != Mode::full || aligned(data, static_cast<size_t>(values * bytes));
    }
};

// A sample is `rows` rows of `length` values: channels x positions (NCHW) or positions x channels (NHWC).
struct Shape {
    int64_t batch, dim, rows, length;
    bool nchw;
    bool use_rows; // someone asks for a channel, or for the place in the other layout

    Shape(int64_t batch, int64_t channels, int64_t spatial, Layout layout)
        : batch(batch), dim(channels * spatial), rows(layout == Layout::nchw ? channels : spatial),
          length(layout == Layout::nchw ? spatial : channels), nchw(layout == Layout::nchw), use_rows(false) {}
};

// V consecutive values of one sample and the rows that they lie in.
template <int V> struct Place {
    int64_t sample, inside;
    int32_t row[V]; // StepTask checks the range
};

template <int V> ADVFAST_DEVICE Place<V> place(const Shape& shape, int64_t sample, int64_t inside) {
    Place<V> at;
    at.sample = sample;
    at.inside = inside;
    int32_t row = 0;
    int64_t end = shape.length;
    if (shape.use_rows) {
        row = static_cast<int32_t>(divide(inside, shape.length));
        end = (row + int64_t(1)) * shape.length;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if (inside + i == end) {
            ++row;
            end += shape.length;
        }
        at.row[i] = row;
    }
    return at;
}

// The place within its row.
template <int V> ADVFAST_DEVICE int64_t column(const Shape& shape, const Place<V>& at, int i) {
    return at.inside + i - at.row[i] * shape.length;
}

template <class T, int V>
ADVFAST_DEVICE void fetch(const Field& field, T value, const Shape& shape, const Place<V>& at, T (&to)[V]) {
    const T* data = static_cast<const T*>(field.data);
    if (field.mode == Mode::full) {
        load_values(data + at.sample * shape.dim + at.inside, to);
    } else if (field.mode == Mode::channel) {
#pragma unroll
        for (int i = 0; i < V; ++i)
            to[i] = data[shape.nchw ? at.row[i] : column(shape, at, i)];
    } else {
        if (field.mode != Mode::value)
            value = data[field.mode == Mode::sample ? at.sample : 0];
#pragma unroll
        for (int i = 0; i < V; ++i)
            to[i] = value;
    }
}
template <int V> ADVFAST_DEVICE void fetch(const Field& field, const Shape& shape, const Place<V>& at, float (&to)[V]) {
    fetch(field, field.value, shape, at, to);
}
// A missing mask lets everything through.
template <int V>
ADVFAST_DEVICE void fetch_mask(const Field& field, const Shape& shape, const Place<V>& at, uint8_t (&to)[V]) {
    fetch(field, uint8_t(1), shape, at, to);
}

// The number of an operand that does not vary over the images.
ADVFAST_DEVICE float number(const Field& field) {
    return field.mode == Mode::value ? field.value : *static_cast<const float*>(field.data);
}

struct StepTask {
    float* x;
    const void* grad;
    const float* x0;
    void* out;
    unsigned long long* nonfinite;
    Shape shape;
    DType grad_dtype, out_dtype;
    Norm norm;
    bool transposed, affine, box_first;
    Field alpha, eps, lo, hi, mask, scale, shift;

    explicit StepTask(const PgdStepArgs& args);
    // Whether four values can be handled at once: 16-byte accesses, and no vector across two samples where it matters.
    bool wide(bool within_samples) const;
};

// Calls f with a value of the C++ type of a dtype tag.
template <class F> ADVFAST_DEVICE void with_dtype(DType dtype, F f) {
    if (dtype == DType::f32)
        f(0.0f);
    else if (dtype == DType::f16)
        f(f16{0});
    else if (dtype == DType::bf16)
        f(bf16{0});
    else
        f(0.0);
}

template <class O, int V> ADVFAST_DEVICE void write_as(const StepTask& task, const Place<V>& at, const float (&x)[V],
                                                       const float (&x0)[V], const float (&scale)[V],
                                                       const float (&shift)[V]) {
    O values[V];
#pragma unroll
    for (int i = 0; i < V; ++i)
        values[i] = task.affine ? round_to<O>((x[i] - shift[i]) * scale[i]) : round_toward<O>(x[i], x0[i]);
    O* out = static_cast<O*>(task.out) + at.sample * task.shape.dim;
    if (!task.transposed) {
        store_values(out + at.inside, values);
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
            out[column(task.shape, at, i) * task.shape.rows + at.row[i]] = values[i];
    }
}

template <int V> ADVFAST_DEVICE void write_out(const StepTask& task, const Place<V>& at, const float (&x)[V],
                                               const float (&x0)[V], const float (&scale)[V], const float (&shift)[V]) {
    with_dtype(task.out_dtype, [&](auto zero) { write_as<decltype(zero)>(task, at, x, x0, scale, shift); });
}
template <int V>
ADVFAST_DEVICE void write_out(const StepTask& task, const Place<V>& at, const float (&x)[V], const float (&x0)[V]) {
    if (!task.out)
        return;
    float scale[V] = {}, shift[V] = {};
    if (task.affine) {
        fetch(task.scale, task.shape, at, scale);
        fetch(task.shift, task.shape, at, shift);
    }
    write_out(task, at, x, x0, scale, shift);
}

// The l2 and l1 step (pgd_ball.cu).
void ball_step(const char* op, const StepTask& task, void* scratch, int device, cudaStream_t stream);

} // namespace advfast

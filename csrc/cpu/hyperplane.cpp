// The smallest displacement onto a hyperplane inside the box [0, 1]. Compiled once for each instruction set (see
// isa.h).
//
// Entries move toward the hyperplane, each by at most its room to the wall. linf moves all by t, l2 by t |w|, until
// they come to their walls: what is still missing of c = |<w, point> - b| is a convex, falling function of t, linear
// between the walls. Newton's method from t = 0 stays to the left of its root and ends on it, as each step but the last
// passes a wall; two to six passes over a row that stays in the cache are usual, where sorting needs a dozen. l1 moves
// the entry with the largest |w| all the way, then the next one: a heap brings up only those that move.

#include "isa.h"

namespace advfast {
namespace ADVFAST_ISA {
namespace {

// kGroup values are handled together, as kParts vectors of kLanes. Sums are kept side by side, a number for each place
// in the group, so that they have the same bits with every instruction set.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
constexpr int kGroup = 8, kParts = kGroup / kLanes;

typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

inline Doubles all(double value) { return Doubles{} + value; }
inline Doubles load(const double* from) {
    Doubles v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}
inline Doubles load(const float* from) {
    Floats v;
    __builtin_memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Doubles);
}
inline void store(double* to, Doubles v) { __builtin_memcpy(to, &v, sizeof v); }
inline void store(float* to, Doubles v) {
    const Floats narrow = __builtin_convertvector(v, Floats);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}
inline Doubles magnitude(Doubles v) { return v < 0.0 ? -v : v; }
inline Doubles smaller(Doubles a, Doubles b) { return a < b ? a : b; }
inline Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }

struct Sums {
    Doubles parts[kParts] = {};
    double total() const {
        double v[kGroup];
        for (int part = 0; part < kParts; ++part)
            store(v + part * kLanes, parts[part]);
        return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }
    double largest() const {
        double v[kGroup];
        for (int part = 0; part < kParts; ++part)
            store(v + part * kLanes, parts[part]);
        for (int i = 1; i < kGroup; ++i)
            v[0] = v[i] > v[0] ? v[i] : v[0];
        return v[0];
    }
};

template <class T> struct Row {
    const T *point, *w;
    T* out;
    int64_t dim;
    double cut;    // entries with |w| <= cut do not move
    double toward; // 1: <w, point> is to grow; -1: to fall
};

// Calls f(point, w, out, part) for each vector; what is left behind the last whole group goes by way of memory that has
// room for one, with zeros behind it.
template <class T, class F> inline void each(const Row<T>& row, F f) {
    int64_t i = 0;
    for (; i + kGroup <= row.dim; i += kGroup)
        for (int part = 0; part < kParts; ++part)
            f(row.point + i + part * kLanes, row.w + i + part * kLanes, row.out + i + part * kLanes, part);
    if (i == row.dim)
        return;
    T point[kGroup] = {}, w[kGroup] = {}, out[kGroup] = {};
    for (int64_t j = i; j < row.dim; ++j)
        point[j - i] = row.point[j], w[j - i] = row.w[j], out[j - i] = row.out[j];
    for (int part = 0; part < kParts; ++part)
        f(point + part * kLanes, w + part * kLanes, out + part * kLanes, part);
    for (int64_t j = i; j < row.dim; ++j)
        row.out[j] = out[j - i];
}

// How steep and how far from the wall: |w|, 0 where it is cut off, and the room in the direction of the movement.
template <class T> struct Entry {
    Doubles steepness, room;
    Entry(const Row<T>& row, const T* point, const T* w) {
        const Doubles weight = load(w), at = load(point), size = magnitude(weight);
        steepness = size > row.cut ? size : all(0.0);
        room = larger(weight * row.toward > 0.0 ? 1.0 - at : at, all(0.0));
    }
};

// Fills in cut and toward; returns c.
template <class T> double prepare(Row<T>& row, double b, bool cuts) {
    Sums product, size;
    each(row, [&](const T* point, const T* w, T*, int part) {
        const Doubles weight = load(w);
        product.parts[part] += weight * load(point);
        size.parts[part] = larger(magnitude(weight), size.parts[part]);
    });
    const double excess = product.total() - b;
    row.cut = cuts ? static_cast<double>(T(1e-8) * static_cast<T>(size.largest())) : 0.0;
    row.toward = excess >= 0.0 ? -1.0 : 1.0;
    return excess >= 0.0 ? excess : -excess;
}

// The t that moves <w, point> by c; infinity where even the walls are too near.
template <bool L2, class T> double multiplier(const Row<T>& row, double c) {
    double t = 0.0;
    while (true) {
        Sums slopes, held;
        each(row, [&](const T* point, const T* w, T*, int part) {
            const Entry<T> entry(row, point, w);
            const Doubles rate = L2 ? entry.steepness : all(1.0);
            const auto moves = entry.room > t * rate;
            slopes.parts[part] += moves ? entry.steepness * rate : all(0.0);
            held.parts[part] += moves ? all(0.0) : entry.steepness * entry.room;
        });
        const double slope = slopes.total();
        if (!(slope > 0.0))
            return __builtin_inf();
        const double next = (c - held.total()) / slope;
        if (!(next > t))
            return t;
        t = next;
    }
}

template <bool L2, class T> void side_by_side(const Row<T>& row, double c) {
    const double t = multiplier<L2>(row, c);
    each(row, [&](const T* point, const T* w, T* out, int) {
        const Entry<T> entry(row, point, w);
        const Doubles by = smaller(L2 ? t * entry.steepness : all(t), entry.room);
        const Doubles moved = entry.steepness > 0.0 ? by : all(0.0);
        store(out, load(w) * row.toward > 0.0 ? moved : -moved);
    });
}

// Whether entry a moves before entry b.
template <class T> inline bool first(const Row<T>& row, int64_t a, int64_t b) {
    const T one = row.w[a] < T(0) ? -row.w[a] : row.w[a], other = row.w[b] < T(0) ? -row.w[b] : row.w[b];
    return one > other || (one == other && a < b);
}
template <class T> void sift(const Row<T>& row, int64_t* heap, int64_t count, int64_t at) {
    const int64_t entry = heap[at];
    for (int64_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        child += child + 1 < count && first(row, heap[child + 1], heap[child]);
        if (!first(row, heap[child], entry))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

template <class T> void one_by_one(const Row<T>& row, double c, int64_t* heap) {
    int64_t count = 0;
    for (int64_t i = 0; i < row.dim; ++i) {
        row.out[i] = T(0);
        heap[count] = i;
        const double size = row.w[i] < T(0) ? -row.w[i] : row.w[i];
        count += size > row.cut;
    }
    for (int64_t at = count / 2 - 1; at >= 0; --at)
        sift(row, heap, count, at);
    while (count > 0 && c > 0.0) {
        const int64_t i = heap[0];
        const double w = row.w[i], steepness = w < 0.0 ? -w : w, at = row.point[i];
        const bool rises = w * row.toward > 0.0;
        const double wall = rises ? 1.0 - at : at, room = wall > 0.0 ? wall : 0.0;
        const double by = c < steepness * room ? c / steepness : room;
        row.out[i] = static_cast<T>(rises ? by : -by);
        c -= steepness * room;
        heap[0] = heap[--count];
        sift(row, heap, count, 0);
    }
}

template <class T> void rows_of(const HyperplaneArgs& args, Range rows, int64_t* heap) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t start = r * args.dim;
        Row<T> row = {static_cast<const T*>(args.points) + start,
                      static_cast<const T*>(args.w) + start,
                      static_cast<T*>(args.out) + start,
                      args.dim,
                      T(0),
                      T(0)};
        const double c = prepare(row, args.b[r], args.norm != Norm::linf);
        if (args.norm == Norm::linf)
            side_by_side<false>(row, c);
        else if (args.norm == Norm::l2)
            side_by_side<true>(row, c);
        else
            one_by_one(row, c, heap);
    }
}

} // namespace

void hyperplane_project(const HyperplaneArgs& args, Range rows, int64_t* heap) {
    if (args.dtype == DType::f64)
        rows_of<double>(args, rows, heap);
    else
        rows_of<float>(args, rows, heap);
}

} // namespace ADVFAST_ISA
} // namespace advfast

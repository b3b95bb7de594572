#include "elementwise.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "vec.h"

namespace portable_cpu {
namespace {

// Elements a thread must have before waking it pays.
constexpr int64_t kGrainElements = 32768;

template <typename Fn>
void for_each_row(int64_t rows, int64_t elements_per_row, const Fn& fn) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_row));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      fn(row);
    }
  });
}

template <typename T, typename C>
void rotate_head(T* x, const C* cosine, const C* sine, int64_t half, bool neox) {
  if (neox) {
    for_each_vector(half, [&](int64_t i, int64_t count) {
      const Vec a = load_upto(x + i, count), b = load_upto(x + half + i, count);
      const Vec c = load_upto(cosine + i, count), s = load_upto(sine + i, count);
      store_vec(x + i, a * c - b * s, count);
      store_vec(x + half + i, b * c + a * s, count);
    });
    return;
  }
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    const float c = cosine[i], s = sine[i];
    x[2 * i] = static_cast<T>(a * c - b * s);
    x[2 * i + 1] = static_cast<T>(b * c + a * s);
  }
}

} // namespace

template <typename T, typename W>
void rms_norm(
    const T* x, int64_t x_stride, T* residual, int64_t residual_stride, const W* weight, T* out, int64_t rows,
    int64_t size, float eps) {
  for_each_row(rows, size, [&](int64_t row) {
    const T* source = x + row * x_stride;
    T* target = out + row * size;
    T* other = residual == nullptr ? nullptr : residual + row * residual_stride;
    Vec squares(0.f);
    for_each_vector(size, [&](int64_t i, int64_t count) {
      Vec value = load_upto(source + i, count);
      if (other != nullptr) {
        value = value + load_upto(other + i, count);
      }
      squares = at::vec::fmadd(value, value, squares);
    });
    const Vec factor(1.f / std::sqrt(sum_lanes(squares) / static_cast<float>(size) + eps));
    for_each_vector(size, [&](int64_t i, int64_t count) {
      Vec value = load_upto(source + i, count);
      if (other != nullptr) {
        value = value + load_upto(other + i, count);
        store_vec(other + i, value, count);
      }
      store_vec(target + i, value * factor * load_upto(weight + i, count), count);
    });
  });
}

template <typename T>
void silu_and_mul(const T* x, int64_t x_stride, T* out, int64_t rows, int64_t size) {
  const Vec one(1.f);
  for_each_row(rows, 4 * size, [&](int64_t row) {
    const T* gate = x + row * x_stride;
    const T* up = gate + size;
    T* target = out + row * size;
    for_each_vector(size, [&](int64_t i, int64_t count) {
      const Vec g = load_upto(gate + i, count);
      store_vec(target + i, g / (one + g.neg().exp_u20()) * load_upto(up + i, count), count);
    });
  });
}

template <typename T, typename C>
void rotary_embedding(
    const int64_t* positions, int64_t tokens, T* q, int64_t q_stride, int64_t q_heads, T* k, int64_t k_stride,
    int64_t k_heads, int64_t head_dim, const C* cos_sin, int64_t rotary_dim, bool neox) {
  const int64_t half = rotary_dim / 2;
  for_each_row(tokens, (q_heads + k_heads) * rotary_dim, [&](int64_t token) {
    const C* cosine = cos_sin + positions[token] * rotary_dim;
    const C* sine = cosine + half;
    for (int64_t head = 0; head < q_heads; ++head) {
      rotate_head(q + token * q_stride + head * head_dim, cosine, sine, half, neox);
    }
    for (int64_t head = 0; head < k_heads; ++head) {
      rotate_head(k + token * k_stride + head * head_dim, cosine, sine, half, neox);
    }
  });
}

template <typename T, typename KV>
void store_rows(
    const T* source, int64_t source_stride, KV* cache, int64_t cache_stride, const int64_t* slots,
    int64_t tokens, int64_t size) {
  for_each_row(tokens, size, [&](int64_t token) {
    const T* row = source + token * source_stride;
    KV* target = cache + slots[token] * cache_stride;
    if constexpr (std::is_same_v<T, KV>) {
      std::memcpy(target, row, size * sizeof(T));
    } else {
      for_each_vector(size, [&](int64_t i, int64_t count) { store_vec(target + i, load_upto(row + i, count), count); });
    }
  });
}

#define INSTANTIATE_PAIR(T, U)                                                                          \
  template void rms_norm<T, U>(const T*, int64_t, T*, int64_t, const U*, T*, int64_t, int64_t, float);  \
  template void rotary_embedding<T, U>(                                                                 \
      const int64_t*, int64_t, T*, int64_t, int64_t, T*, int64_t, int64_t, int64_t, const U*, int64_t, bool); \
  template void store_rows<T, U>(const T*, int64_t, U*, int64_t, const int64_t*, int64_t, int64_t);
#define INSTANTIATE(T)              \
  template void silu_and_mul<T>(const T*, int64_t, T*, int64_t, int64_t); \
  INSTANTIATE_PAIR(T, float)        \
  INSTANTIATE_PAIR(T, c10::BFloat16) \
  INSTANTIATE_PAIR(T, c10::Half)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

} // namespace portable_cpu

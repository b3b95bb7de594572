// Loads, stores and rounding around one float vector of PyTorch's at::vec.
//
// Everything is computed in float32. The width of `Vec` (16, 8 or 4 lanes) follows from the CPU_CAPABILITY_*
// macro this file is compiled with, so the same sources serve AVX-512, AVX2, NEON and plain C++.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace portable_cpu {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// kLanes elements of any supported type, as float.
template <typename T>
inline Vec load_vec(const T* source) {
  if constexpr (std::is_same_v<T, float>) {
    return Vec::loadu(source);
  } else {
    Vec out;
    at::vec::load_to_float<T>(source, out);
    return out;
  }
}

// `count` < kLanes elements, the other lanes zero.
template <typename T>
inline Vec load_vec(const T* source, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    lanes[i] = static_cast<float>(source[i]);
  }
  return Vec::loadu(lanes);
}

// `count` <= kLanes lanes, rounded to the nearest value of T.
template <typename T>
inline void store_vec(T* target, Vec value, int64_t count = kLanes) {
  if constexpr (std::is_same_v<T, float>) {
    value.store(target, static_cast<int>(count));
  } else {
    at::vec::convert_from_float<T>(value, value).store(target, static_cast<int>(count));
  }
}

// fn(index, count): whole vectors first (count == kLanes), then the tail.
template <typename Fn>
inline void for_each_vector(int64_t size, Fn&& fn) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    fn(i, kLanes);
  }
  if (i < size) {
    fn(i, size - i);
  }
}

template <typename T>
inline Vec load_upto(const T* source, int64_t count) {
  return count == kLanes ? load_vec(source) : load_vec(source, count);
}

inline float sum_lanes(Vec value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, value);
}

inline float max_lanes(Vec value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, value);
}

template <typename T>
inline void prefetch(const T* data, int64_t size) {
  const char* line = reinterpret_cast<const char*>(data);
  for (int64_t offset = 0; offset < size * static_cast<int64_t>(sizeof(T)); offset += 64) {
    __builtin_prefetch(line + offset);
  }
}

// Lane i of the result is the sum of all lanes of values[i].
inline Vec sum_each(const Vec (&values)[kLanes]) {
#if defined(CPU_CAPABILITY_AVX512)
  // Halve the number of vectors four times: within 128-bit lanes by 4-byte and 8-byte pairs, then across lanes.
  __m512 quad[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 a = values[4 * i], b = values[4 * i + 1], c = values[4 * i + 2], d = values[4 * i + 3];
    const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    quad[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  }
  const auto fold = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return fold(fold(quad[0], quad[1]), fold(quad[2], quad[3]));
#elif defined(CPU_CAPABILITY_AVX2)
  const auto quad = [&](int i) {
    return _mm256_hadd_ps(
        _mm256_hadd_ps(values[i], values[i + 1]), _mm256_hadd_ps(values[i + 2], values[i + 3]));
  };
  const __m256 low = quad(0), high = quad(4);
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
#else
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    lanes[i] = sum_lanes(values[i]);
  }
  return Vec::loadu(lanes);
#endif
}

} // namespace portable_cpu

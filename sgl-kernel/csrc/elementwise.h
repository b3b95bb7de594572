// Row-wise operators around attention. Strides are in elements; the last dimension is contiguous.
#pragma once

#include <cstdint>

namespace portable_cpu {

// out = x / rms(x) * weight; with `residual`, x + residual is normalised and also stored there.
template <typename T, typename W>
void rms_norm(
    const T* x, int64_t x_stride, T* residual, int64_t residual_stride, const W* weight, T* out, int64_t rows,
    int64_t size, float eps);

// out[:, i] = silu(x[:, i]) * x[:, size + i]
template <typename T>
void silu_and_mul(const T* x, int64_t x_stride, T* out, int64_t rows, int64_t size);

// Rotates the first `rotary_dim` elements of every head in place. cos_sin: (positions, rotary_dim), cosines
// first. neox: pairs are (i, i + rotary_dim / 2), otherwise (2 i, 2 i + 1).
template <typename T, typename C>
void rotary_embedding(
    const int64_t* positions, int64_t tokens, T* q, int64_t q_stride, int64_t q_heads, T* k, int64_t k_stride,
    int64_t k_heads, int64_t head_dim, const C* cos_sin, int64_t rotary_dim, bool neox);

// cache[slots[t]] = source[t], rounded to the cache's type; `size` elements per token.
template <typename T, typename KV>
void store_rows(
    const T* source, int64_t source_stride, KV* cache, int64_t cache_stride, const int64_t* slots,
    int64_t tokens, int64_t size);

} // namespace portable_cpu

// The operators on tensors, checked: what library.cpp registers and decoder.cpp composes.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace portable_cpu::operators {

using at::Tensor;

std::tuple<Tensor, Tensor, int64_t> attention_plan(
    const Tensor& table_rows, const Tensor& lengths, const Tensor& extends, int64_t queries_per_kv_head,
    bool causal);

void attention(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, Tensor& out, const Tensor& table,
    const Tensor& tasks, const Tensor& merges, Tensor& workspace, double scale, double logit_cap, int64_t window,
    bool causal);

void store_kv(const Tensor& k, const Tensor& v, Tensor& k_cache, Tensor& v_cache, const Tensor& slots);

void rms_norm(
    const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, Tensor& out, double eps);

void silu_and_mul(const Tensor& x, Tensor& out);

void rotary_embedding(
    const Tensor& positions, Tensor& q, Tensor& k, const Tensor& cos_sin, int64_t head_dim, bool neox);

// A weight in the order in which `product` reads it; product.cpp.
Tensor pack_weight(const Tensor& weight);

Tensor product(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias);

// All layers of a decoder in one call; decoder.cpp.
Tensor decoder_layers(
    const Tensor& hidden, const Tensor& positions, const Tensor& slots, at::TensorList norms,
    at::TensorList weights, const c10::List<std::optional<Tensor>>& biases, at::TensorList k_caches,
    at::TensorList v_caches, const Tensor& cos_sin, const Tensor& table, const Tensor& tasks, const Tensor& merges,
    Tensor& workspace, int64_t head_dim, double scale, double eps, bool neox);

} // namespace portable_cpu::operators

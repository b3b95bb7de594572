// A decoder's layers, one after the other without returning to Python.
//
// A decoding step of a small model spends nearly as long in Python between its few hundred operators as in them.
// Nothing is fused here: the operators and their order are those that the model would run, and so are the
// results, bit by bit.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "operators.h"

namespace portable_cpu::operators {
namespace {

// Products with one layer, in this order; also of `weights` and `biases`.
enum Product { kQkv, kOutput, kGateUp, kDown, kProducts };

// x W^T + b with a weight that oneDNN or `pack_weight` has reordered.
Tensor linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias) {
  if (!packed.is_mkldnn()) {
    return product(x, packed, bias);
  }
  using Signature = Tensor(
      const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
      c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto one_dnn = c10::Dispatcher::singleton()
                                  .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                                  .typed<Signature>();
  static const c10::List<std::optional<at::Scalar>> none;
  return one_dnn.call(x, packed, bias, "none", none, "");
}

} // namespace

Tensor decoder_layers(
    const Tensor& hidden, const Tensor& positions, const Tensor& slots, at::TensorList norms,
    at::TensorList weights, const c10::List<std::optional<Tensor>>& biases, at::TensorList k_caches,
    at::TensorList v_caches, const Tensor& cos_sin, const Tensor& table, const Tensor& tasks, const Tensor& merges,
    Tensor& workspace, int64_t head_dim, double scale, double eps, bool neox) {
  const size_t layers = k_caches.size();
  TORCH_CHECK(
      layers > 0 && v_caches.size() == layers && norms.size() == 2 * layers + 1 &&
          weights.size() == kProducts * layers && biases.size() == kProducts * layers,
      "decoder_layers: ", layers, " layers need as many v_caches, two norms each and one at the end, and ",
      int(kProducts), " weights and biases each");
  TORCH_CHECK(hidden.dim() == 2 && hidden.is_contiguous(), "decoder_layers: hidden must be contiguous (tokens, size)");
  const int64_t tokens = hidden.size(0);
  const int64_t kv_size = k_caches[0].size(1) * head_dim;

  Tensor residual = hidden.clone();
  Tensor x = at::empty_like(hidden);
  rms_norm(residual, std::nullopt, norms[0], x, eps);
  for (size_t layer = 0; layer < layers; ++layer) {
    const auto multiply = [&](const Tensor& input, Product which) {
      const size_t i = layer * kProducts + which;
      return linear(input, weights[i], biases.get(i));
    };
    Tensor k_cache = k_caches[layer], v_cache = v_caches[layer];

    const Tensor qkv = multiply(x, kQkv);
    const int64_t q_size = qkv.size(1) - 2 * kv_size;
    Tensor q = qkv.narrow(1, 0, q_size), k = qkv.narrow(1, q_size, kv_size);
    const Tensor v = qkv.narrow(1, q_size + kv_size, kv_size);
    rotary_embedding(positions, q, k, cos_sin, head_dim, neox);
    const auto heads = [&](const Tensor& rows) { return rows.unflatten(1, {-1, head_dim}); };
    store_kv(heads(k), heads(v), k_cache, v_cache, slots);
    Tensor attended = at::empty({tokens, q_size / head_dim, head_dim}, hidden.options());
    attention(
        heads(q), k_cache, v_cache, attended, table, tasks, merges, workspace, scale, 0.0, -1, true);
    const Tensor from_attention = multiply(attended.flatten(1), kOutput);
    rms_norm(from_attention, residual, norms[2 * layer + 1], x, eps);

    const Tensor gate_up = multiply(x, kGateUp);
    Tensor activated = at::empty({tokens, gate_up.size(1) / 2}, hidden.options());
    silu_and_mul(gate_up, activated);
    const Tensor from_mlp = multiply(activated, kDown);
    rms_norm(from_mlp, residual, norms[2 * layer + 2], x, eps);
  }
  return x;
}

} // namespace portable_cpu::operators

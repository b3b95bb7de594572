// The operators as PyTorch sees them: checks, types, and nothing else.
//
// PORTABLE_CPU_LIBRARY names the operator namespace; it carries the instruction set, so that builds for
// several of them can be loaded into one process (the tests do).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "attention.h"
#include "attention_plan.h"
#include "elementwise.h"
#include "operators.h"

namespace portable_cpu::operators {
namespace {

// Calls fn with a value of the C++ type behind `dtype`.
template <typename Fn>
void with_type(at::ScalarType dtype, const char* name, const Fn& fn) {
  switch (dtype) {
    case at::kFloat: return fn(float{});
    case at::kBFloat16: return fn(c10::BFloat16{});
    case at::kHalf: return fn(c10::Half{});
    default: TORCH_CHECK(false, name, ": dtype ", dtype, " is not supported; use float32, bfloat16 or float16");
  }
}

void check_heads(const Tensor& x, const char* name) {
  TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1, name, ": expected (rows, heads, dim) with contiguous last dimension");
}

void check_integers(const Tensor& x, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(x.scalar_type() == dtype && x.is_contiguous(), name, ": expected a contiguous ", dtype, " tensor, got ",
              x.scalar_type());
}

template <typename Struct>
const Struct* as_structs(const Tensor& x, const char* name) {
  check_integers(x, at::kInt, name);
  TORCH_CHECK(x.dim() == 2 && x.size(1) * sizeof(int32_t) == sizeof(Struct), name, ": not made by attention_plan");
  return reinterpret_cast<const Struct*>(x.const_data_ptr<int32_t>());
}

template <typename Struct>
Tensor as_tensor(const std::vector<Struct>& records) {
  constexpr int64_t fields = sizeof(Struct) / sizeof(int32_t);
  Tensor out = at::empty({static_cast<int64_t>(records.size()), fields}, at::kInt);
  if (!records.empty()) {
    std::memcpy(out.mutable_data_ptr(), records.data(), records.size() * sizeof(Struct));
  }
  return out;
}

} // namespace

std::tuple<Tensor, Tensor, int64_t> attention_plan(
    const Tensor& table_rows, const Tensor& lengths, const Tensor& extends, int64_t queries_per_kv_head,
    bool causal) {
  check_integers(table_rows, at::kLong, "table_rows");
  check_integers(lengths, at::kLong, "lengths");
  check_integers(extends, at::kLong, "extends");
  TORCH_CHECK(table_rows.numel() == lengths.numel() && lengths.numel() == extends.numel(),
              "attention_plan: table_rows, lengths and extends must have one entry per sequence");
  TORCH_CHECK(queries_per_kv_head > 0, "attention_plan: queries_per_kv_head must be positive");
  const auto plan = portable_cpu::make_plan(
      table_rows.const_data_ptr<int64_t>(), lengths.const_data_ptr<int64_t>(), extends.const_data_ptr<int64_t>(),
      lengths.numel(), queries_per_kv_head, causal);
  return {as_tensor(plan.tasks), as_tensor(plan.merges), plan.partial_rows};
}

void attention(
    const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, Tensor& out, const Tensor& table,
    const Tensor& tasks, const Tensor& merges, Tensor& workspace, double scale, double logit_cap, int64_t window,
    bool causal) {
  check_heads(q, "q");
  check_heads(k_cache, "k_cache");
  check_heads(v_cache, "v_cache");
  check_heads(out, "out");
  TORCH_CHECK(q.size(1) % k_cache.size(1) == 0, "attention: ", q.size(1), " query heads cannot share ",
              k_cache.size(1), " KV heads");
  TORCH_CHECK(q.size(2) == k_cache.size(2), "attention: q and k_cache have different head dimensions");
  TORCH_CHECK(out.size(2) == v_cache.size(2) && out.size(1) == q.size(1) && out.size(0) == q.size(0),
              "attention: out must be (tokens, heads, value_dim)");
  TORCH_CHECK(k_cache.scalar_type() == v_cache.scalar_type(), "attention: k_cache and v_cache differ in dtype");
  TORCH_CHECK(out.scalar_type() == q.scalar_type(), "attention: out and q differ in dtype");
  TORCH_CHECK(table.scalar_type() == at::kInt && table.dim() == 2 && table.stride(1) == 1,
              "attention: table must be int32 (requests, positions)");
  TORCH_CHECK(workspace.scalar_type() == at::kFloat && workspace.is_contiguous(), "workspace: float32 expected");
  const auto* task = as_structs<portable_cpu::Task>(tasks, "tasks");
  const auto* merge = as_structs<portable_cpu::Merge>(merges, "merges");
  const int64_t workspace_rows = workspace.numel() / (q.size(1) * (v_cache.size(2) + 2));
  for (int64_t i = 0; i < tasks.size(0); ++i) {
    const portable_cpu::Task& t = task[i];
    TORCH_CHECK(
        t.first_query + t.queries <= q.size(0) && t.table_row < table.size(0) && t.kv_end <= table.size(1) &&
            (t.partial < 0 || t.partial + t.queries <= workspace_rows),
        "attention: the plan does not fit q, table or workspace");
  }

  with_type(q.scalar_type(), "attention q", [](auto) {});
  with_type(k_cache.scalar_type(), "attention cache", [&](auto kv_type) {
    using KV = decltype(kv_type);
    portable_cpu::AttentionArgs<KV> args{};
    args.q = q.const_data_ptr();
    args.k_cache = k_cache.const_data_ptr<KV>();
    args.v_cache = v_cache.const_data_ptr<KV>();
    args.out = out.mutable_data_ptr();
    args.q_type = q.scalar_type();
    args.table = table.const_data_ptr<int32_t>();
    args.workspace = workspace.mutable_data_ptr<float>();
    args.q_stride = q.stride(0), args.q_head_stride = q.stride(1);
    args.k_stride = k_cache.stride(0), args.k_head_stride = k_cache.stride(1);
    args.v_stride = v_cache.stride(0), args.v_head_stride = v_cache.stride(1);
    args.out_stride = out.stride(0), args.out_head_stride = out.stride(1);
    args.table_stride = table.stride(0);
    args.heads = q.size(1), args.kv_heads = k_cache.size(1);
    args.head_dim = q.size(2), args.value_dim = v_cache.size(2);
    args.scale = static_cast<float>(scale);
    args.logit_cap = static_cast<float>(logit_cap);
    args.window = window;
    args.causal = causal;
    portable_cpu::attention<KV>(args, task, tasks.size(0), merge, merges.size(0));
  });
}

void store_kv(
    const Tensor& k, const Tensor& v, Tensor& k_cache, Tensor& v_cache, const Tensor& slots) {
  check_integers(slots, at::kLong, "slots");
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  const int64_t capacity = std::min(k_cache.size(0), v_cache.size(0));
  for (int64_t t = 0; t < slots.numel(); ++t) {
    TORCH_CHECK(slot[t] >= 0 && slot[t] < capacity, "store_kv: slot ", slot[t], " is outside the pool of ", capacity);
  }
  const auto store = [&](const Tensor& source, Tensor& cache, const char* name) {
    check_heads(source, name);
    check_heads(cache, name);
    TORCH_CHECK(source.size(0) == slots.numel(), name, ": ", source.size(0), " rows for ", slots.numel(), " slots");
    TORCH_CHECK(source.size(1) == cache.size(1) && source.size(2) == cache.size(2), name,
                ": heads or head dimension differ from the cache's");
    const int64_t size = source.size(1) * source.size(2);
    TORCH_CHECK((source.stride(1) == source.size(2) && cache.stride(1) == cache.size(2)) || source.size(1) == 1, name,
                ": the heads of a token must be contiguous");
    with_type(source.scalar_type(), name, [&](auto source_type) {
      with_type(cache.scalar_type(), name, [&](auto cache_type) {
        using T = decltype(source_type);
        using KV = decltype(cache_type);
        portable_cpu::store_rows<T, KV>(
            source.const_data_ptr<T>(), source.stride(0), cache.mutable_data_ptr<KV>(), cache.stride(0),
            slot, slots.numel(), size);
      });
    });
  };
  store(k, k_cache, "store_kv k");
  store(v, v_cache, "store_kv v");
}

void rms_norm(
    const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, Tensor& out, double eps) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "rms_norm: x must be (rows, size), last dimension contiguous");
  TORCH_CHECK(weight.is_contiguous() && weight.numel() == x.size(1), "rms_norm: weight must have x.size(1) elements");
  TORCH_CHECK(out.is_contiguous() && out.sizes() == x.sizes() && out.scalar_type() == x.scalar_type(),
              "rms_norm: out must be contiguous and like x");
  if (residual.has_value()) {
    TORCH_CHECK(residual->sizes() == x.sizes() && residual->stride(1) == 1 &&
                    residual->scalar_type() == x.scalar_type(),
                "rms_norm: residual must be like x");
  }
  with_type(x.scalar_type(), "rms_norm x", [&](auto x_type) {
    with_type(weight.scalar_type(), "rms_norm weight", [&](auto weight_type) {
      using T = decltype(x_type);
      using W = decltype(weight_type);
      portable_cpu::rms_norm<T, W>(
          x.const_data_ptr<T>(), x.stride(0), residual.has_value() ? residual->mutable_data_ptr<T>() : nullptr,
          residual.has_value() ? residual->stride(0) : 0, weight.const_data_ptr<W>(), out.mutable_data_ptr<T>(),
          x.size(0), x.size(1), static_cast<float>(eps));
    });
  });
}

void silu_and_mul(const Tensor& x, Tensor& out) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "silu_and_mul: x must be (rows, 2 * size), last dimension contiguous");
  TORCH_CHECK(out.dim() == 2 && out.is_contiguous() && out.size(0) == x.size(0) && out.size(1) * 2 == x.size(1) &&
                  out.scalar_type() == x.scalar_type(),
              "silu_and_mul: out must be contiguous (rows, size) of x's dtype");
  with_type(x.scalar_type(), "silu_and_mul", [&](auto type) {
    using T = decltype(type);
    portable_cpu::silu_and_mul<T>(
        x.const_data_ptr<T>(), x.stride(0), out.mutable_data_ptr<T>(), x.size(0), out.size(1));
  });
}

void rotary_embedding(
    const Tensor& positions, Tensor& q, Tensor& k, const Tensor& cos_sin, int64_t head_dim, bool neox) {
  check_integers(positions, at::kLong, "positions");
  const int64_t tokens = positions.numel(), rotary_dim = cos_sin.size(1);
  TORCH_CHECK(cos_sin.dim() == 2 && cos_sin.is_contiguous() && rotary_dim % 2 == 0 && rotary_dim <= head_dim,
              "rotary_embedding: cos_sin must be (positions, rotary_dim), rotary_dim even and at most head_dim");
  for (const Tensor* x : {&q, &k}) {
    TORCH_CHECK(x->dim() == 2 && x->size(0) == tokens && x->stride(1) == 1 && x->size(1) % head_dim == 0,
                "rotary_embedding: q and k must be (tokens, heads * head_dim), last dimension contiguous");
  }
  TORCH_CHECK(q.scalar_type() == k.scalar_type(), "rotary_embedding: q and k differ in dtype");
  const int64_t* position = positions.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK(position[t] >= 0 && position[t] < cos_sin.size(0), "rotary_embedding: position ", position[t],
                " is outside the table of ", cos_sin.size(0));
  }
  with_type(q.scalar_type(), "rotary_embedding", [&](auto type) {
    with_type(cos_sin.scalar_type(), "rotary_embedding cos_sin", [&](auto cache_type) {
      using T = decltype(type);
      using C = decltype(cache_type);
      portable_cpu::rotary_embedding<T, C>(
          position, tokens, q.mutable_data_ptr<T>(), q.stride(0), q.size(1) / head_dim, k.mutable_data_ptr<T>(),
          k.stride(0), k.size(1) / head_dim, head_dim, cos_sin.const_data_ptr<C>(), rotary_dim, neox);
    });
  });
}

} // namespace portable_cpu::operators

// One more expansion, so that the macro's value and not its name becomes the namespace.
#define DEFINE_LIBRARY(name, m) TORCH_LIBRARY(name, m)
DEFINE_LIBRARY(PORTABLE_CPU_LIBRARY, m) {
  using namespace portable_cpu::operators;
  m.def(
      "attention_plan(Tensor table_rows, Tensor lengths, Tensor extends, int queries_per_kv_head, bool causal) -> "
      "(Tensor, Tensor, int)",
      &attention_plan);
  m.def(
      "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor(a!) out, Tensor table, Tensor tasks, Tensor merges, "
      "Tensor(b!) workspace, float scale, float logit_cap, int window, bool causal) -> ()",
      &attention);
  m.def(
      "store_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> ()", &store_kv);
  m.def("rms_norm(Tensor x, Tensor(a!)? residual, Tensor weight, Tensor(b!) out, float eps) -> ()", &rms_norm);
  m.def("silu_and_mul(Tensor x, Tensor(a!) out) -> ()", &silu_and_mul);
  m.def(
      "rotary_embedding(Tensor positions, Tensor(a!) q, Tensor(b!) k, Tensor cos_sin, int head_dim, bool neox) -> ()",
      &rotary_embedding);
  m.def("pack_weight(Tensor weight) -> Tensor", &pack_weight);
  m.def("product(Tensor x, Tensor packed, Tensor? bias) -> Tensor", &product);
  m.def(
      "decoder_layers(Tensor hidden, Tensor positions, Tensor slots, Tensor[] norms, Tensor[] weights, "
      "Tensor?[] biases, Tensor[] k_caches, Tensor[] v_caches, Tensor cos_sin, Tensor table, Tensor tasks, "
      "Tensor merges, Tensor(a!) workspace, int head_dim, float scale, float eps, bool neox) -> Tensor",
      &decoder_layers);
}

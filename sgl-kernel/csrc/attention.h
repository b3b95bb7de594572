// Paged attention over ragged queries: decode rows, prefill chunks and mixtures in one call.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "attention_plan.h"

namespace portable_cpu {

// Strides are in elements; the last dimension of every tensor is contiguous.
template <typename KV>
struct AttentionArgs {
  const void* q;        // (tokens, heads, head_dim) of q_type
  const KV* k_cache;    // (slots, kv_heads, head_dim)
  const KV* v_cache;    // (slots, kv_heads, value_dim)
  void* out;            // (tokens, heads, value_dim) of q_type
  const int32_t* table; // (requests, positions) -> slot
  float* workspace;     // (partial_rows, heads, value_dim + 2)
  c10::ScalarType q_type; // float32, bfloat16 or float16
  int64_t q_stride, q_head_stride;
  int64_t k_stride, k_head_stride;
  int64_t v_stride, v_head_stride;
  int64_t out_stride, out_head_stride;
  int64_t table_stride;
  int64_t heads, kv_heads, head_dim, value_dim;
  float scale;
  float logit_cap; // 0: none
  int64_t window;  // tokens before the query that it still sees; -1: all
  bool causal;
};

template <typename KV>
void attention(
    const AttentionArgs<KV>& args, const Task* tasks, int64_t num_tasks, const Merge* merges,
    int64_t num_merges);

} // namespace portable_cpu

// What the float and the bfloat16 tiles of attention share: scratch memory, masking, online softmax, output.
#pragma once

#include <cmath>
#include <limits>
#include <memory>

#include "attention.h"
#include "vec.h"

namespace portable_cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// How many cached tokens ahead keys are requested from memory.
constexpr int64_t kPrefetchTokens = 16;

// Per-thread buffers, 64-byte aligned, reused between calls.
class Scratch {
 public:
  float* take(int64_t floats) {
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float) + 64;
    if (bytes > size_) {
      data_.reset(new char[bytes]);
      size_ = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(data_.get());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<char[]> data_;
  size_t size_ = 0;
};

// `size` elements as float, padded with zeros to whole vectors.
template <typename T>
inline void widen_row(const T* source, int64_t size, float* target) {
  for_each_vector(size, [&](int64_t i, int64_t count) { load_upto(source + i, count).store(target + i); });
}

// Calls fn with a value of the C++ type behind `dtype`.
template <typename Fn>
inline void with_query_type(c10::ScalarType dtype, const Fn& fn) {
  switch (dtype) {
    case c10::ScalarType::BFloat16: return fn(c10::BFloat16{});
    case c10::ScalarType::Half: return fn(c10::Half{});
    default: return fn(float{});
  }
}

// out[token, head, i...] = vector(i, count)
template <typename KV, typename Fn>
inline void write_out(const AttentionArgs<KV>& args, int64_t token, int64_t head, const Fn& vector) {
  with_query_type(args.q_type, [&](auto type) {
    auto* target =
        static_cast<decltype(type)*>(args.out) + token * args.out_stride + head * args.out_head_stride;
    for_each_vector(args.value_dim, [&](int64_t i, int64_t count) {
      store_vec(target + i, vector(i, count), count);
    });
  });
}

// Cached positions that a query at `position` sees: [begin, end).
struct Visible {
  int64_t begin, end;
};

template <typename KV>
inline Visible visible(const AttentionArgs<KV>& args, const Task& task, int64_t position) {
  const int64_t begin = args.window >= 0 ? std::max<int64_t>(task.kv_begin, position - args.window) : task.kv_begin;
  const int64_t end = args.causal ? std::min<int64_t>(task.kv_end, position + 1) : task.kv_end;
  return {begin, end};
}

// One row's scores become exp(score - max) in place; updates the running maximum and sum.
// Returns the factor for what was accumulated before. [begin, end) are visible, the rest of `width` is not.
inline float softmax_row(
    float* scores, int64_t begin, int64_t end, int64_t width, float scale, float logit_cap, float& maximum,
    float& sum) {
  const Vec inner(logit_cap > 0.f ? scale / logit_cap : scale), cap(logit_cap);
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec score = Vec::loadu(scores + i) * inner;
    (logit_cap > 0.f ? cap * score.tanh() : score).store(scores + i);
  }
  std::fill(scores, scores + begin, kMinusInfinity);
  std::fill(scores + end, scores + width, kMinusInfinity);
  Vec top(kMinusInfinity);
  for (int64_t i = 0; i < width; i += kLanes) {
    top = at::vec::maximum(top, Vec::loadu(scores + i));
  }
  const float next = std::max(maximum, max_lanes(top));
  const float factor = maximum == next ? 1.f : std::exp(maximum - next);
  const Vec shift(next);
  Vec total(0.f);
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec weight = (Vec::loadu(scores + i) - shift).exp_u20();
    weight.store(scores + i);
    total = total + weight;
  }
  sum = sum * factor + sum_lanes(total);
  maximum = next;
  return factor;
}

inline void scale_row(float* row, float factor, int64_t size) {
  const Vec scalar(factor);
  for (int64_t i = 0; i < size; i += kLanes) {
    (Vec::loadu(row + i) * scalar).store(row + i);
  }
}

// Writes a finished tile: divided to `out`, or as it is to the workspace if other splits follow.
template <typename KV>
inline void finish_tile(
    const AttentionArgs<KV>& args, const Task& task, int64_t kv_head, int64_t rows, const float* acc,
    int64_t value_width, const float* maximum, const float* sum) {
  const int64_t group = args.heads / args.kv_heads;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = r / group, head = kv_head * group + r % group;
    const float* row = acc + r * value_width;
    if (task.partial >= 0) {
      float* target = args.workspace + ((task.partial + token) * args.heads + head) * (args.value_dim + 2);
      std::memcpy(target, row, args.value_dim * sizeof(float));
      target[args.value_dim] = maximum[r];
      target[args.value_dim + 1] = sum[r];
      continue;
    }
    const Vec inverse(sum[r] > 0.f ? 1.f / sum[r] : 0.f);
    write_out(args, task.first_query + token, head, [&](int64_t i, int64_t) {
      return Vec::loadu(row + i) * inverse;
    });
  }
}

// The whole task on the matrix unit that PyTorch's oneDNN drives (AMX, AVX512-BF16): products of bfloat16 summed in
// float32, softmax in float32, its weights rounded to bfloat16. For more than kDotRows rows of bfloat16 queries.
void run_task_bf16(const AttentionArgs<c10::BFloat16>& args, const Task& task, int64_t kv_head, Scratch& scratch);

// Whether this CPU has one and the shapes suit it.
bool can_run_task_bf16(const AttentionArgs<c10::BFloat16>& args);

} // namespace portable_cpu

#include <ATen/native/CPUBlas.h>

#include "attention_tile.h"

namespace portable_cpu {
namespace {

// Cached tokens per step: the matrix unit wants larger products than float registers do.
constexpr int64_t kWideBlock = 4 * kBlock;
// Rows and columns are padded to this, which also keeps the number of kernels that oneDNN generates small.
constexpr int64_t kMatrixTile = 16;

// Two rows of bfloat16 interleaved element by element: the layout of the right-hand side ("VNNI").
inline void interleave(const c10::BFloat16* even, const c10::BFloat16* odd, int64_t size, uint32_t* target) {
  for (int64_t i = 0; i < size; ++i) {
    target[i] = even[i].x | static_cast<uint32_t>(odd[i].x) << 16;
  }
}

inline void round_row(const float* source, int64_t size, c10::BFloat16* target) {
  for (int64_t i = 0; i < size; i += 2 * kLanes) {
    at::vec::convert_from_float<c10::BFloat16>(Vec::loadu(source + i), Vec::loadu(source + i + kLanes))
        .store(target + i);
  }
}

} // namespace

bool can_run_task_bf16(const AttentionArgs<c10::BFloat16>& args) {
  static const bool matrix_unit = at::native::cpublas::could_pack(at::kBFloat16);
  return matrix_unit && args.q_type == at::kBFloat16 && args.head_dim % kMatrixTile == 0;
}

void run_task_bf16(const AttentionArgs<c10::BFloat16>& args, const Task& task, int64_t kv_head, Scratch& scratch) {
  using BF16 = c10::BFloat16;
  const int64_t group = args.heads / args.kv_heads;
  const int64_t rows = task.queries * group;
  const int64_t padded_rows = round_up(rows, kMatrixTile);
  const int64_t dim = args.head_dim;
  const int64_t value_width = round_up(args.value_dim, kMatrixTile);

  // Sizes in floats; a float holds two bfloat16.
  float* acc = scratch.take(
      padded_rows * (value_width + kWideBlock + kWideBlock / 2 + dim / 2 + 2) + kWideBlock * dim +
      kWideBlock / 2 * value_width + 8 * 16);
  const auto next = [](float* previous, int64_t size) { return previous + round_up(size, 16); };
  float* scores = next(acc, padded_rows * value_width);        // (padded_rows, kWideBlock)
  float* weights = next(scores, padded_rows * kWideBlock);     // (padded_rows, kWideBlock) bfloat16
  float* q = next(weights, padded_rows * kWideBlock / 2);      // (padded_rows, dim) bfloat16
  float* keys = next(q, padded_rows * dim / 2);                // (kWideBlock, dim / 2) pairs
  float* keys_t = next(keys, kWideBlock * dim / 2);            // (dim / 2, kWideBlock) pairs
  float* values = next(keys_t, kWideBlock * dim / 2);          // (kWideBlock / 2, value_width) pairs of tokens
  float* maximum = next(values, kWideBlock / 2 * value_width); // (rows,)
  float* sum = maximum + rows;                                 // (rows,)
  auto* q16 = reinterpret_cast<BF16*>(q);
  auto* weights16 = reinterpret_cast<BF16*>(weights);
  auto* values32 = reinterpret_cast<uint32_t*>(values);

  for (int64_t r = 0; r < rows; ++r) {
    const BF16* source = static_cast<const BF16*>(args.q) + (task.first_query + r / group) * args.q_stride +
        (kv_head * group + r % group) * args.q_head_stride;
    std::memcpy(q16 + r * dim, source, dim * sizeof(BF16));
  }
  std::fill(q + rows * dim / 2, q + padded_rows * dim / 2, 0.f);
  std::fill(weights + rows * kWideBlock / 2, weights + padded_rows * kWideBlock / 2, 0.f);
  std::fill(acc, acc + padded_rows * value_width, 0.f);
  std::fill(values, values + kWideBlock / 2 * value_width, 0.f);
  std::fill(maximum, maximum + rows, kMinusInfinity);
  std::fill(sum, sum + rows, 0.f);

  const int32_t* slots = args.table + task.table_row * args.table_stride;
  const BF16* k_base = args.k_cache + kv_head * args.k_head_stride;
  const BF16* v_base = args.v_cache + kv_head * args.v_head_stride;

  for (int64_t block = visible(args, task, task.position).begin; block < task.kv_end; block += kWideBlock) {
    const int64_t size = std::min<int64_t>(kWideBlock, task.kv_end - block);
    const int64_t width = round_up(size, kBlock);
    const int32_t* slot = slots + block;
    for (int64_t t = 0; t < size; ++t) {
      prefetch(v_base + slot[t] * args.v_stride, args.value_dim);
      if (block + t + kPrefetchTokens < task.kv_end) {
        prefetch(k_base + slot[t + kPrefetchTokens] * args.k_stride, dim);
      }
      std::memcpy(keys + t * dim / 2, k_base + slot[t] * args.k_stride, dim * sizeof(BF16));
    }
    std::fill(keys + size * dim / 2, keys + width * dim / 2, 0.f);
    // Pairs of bfloat16 move as one 32-bit element: transposed, they are the interleaved layout.
    at::vec::transpose_mxn<float>(
        keys, dim / 2, keys_t, kWideBlock, static_cast<int>(width), static_cast<int>(dim / 2));
    at::native::cpublas::brgemm(
        padded_rows, width, dim, dim, kWideBlock, kWideBlock, false, q16, reinterpret_cast<BF16*>(keys_t), scores);

    for (int64_t r = 0; r < rows; ++r) {
      const Visible range = visible(args, task, task.position + r / group);
      const int64_t begin = std::max<int64_t>(range.begin - block, 0);
      const int64_t end = std::min<int64_t>(range.end - block, size);
      float* row = scores + r * kWideBlock;
      if (begin >= end) {
        std::fill(weights + r * kWideBlock / 2, weights + (r * kWideBlock + width) / 2, 0.f);
        continue;
      }
      const float factor = softmax_row(row, begin, end, width, args.scale, args.logit_cap, maximum[r], sum[r]);
      if (factor != 1.f) {
        scale_row(acc + r * value_width, factor, value_width);
      }
      round_row(row, width, weights16 + r * kWideBlock);
    }

    for (int64_t t = 0; t < size; t += 2) {
      const BF16* even = v_base + slot[t] * args.v_stride;
      // An odd last token is paired with itself: the weight beside it is zero.
      const BF16* odd = t + 1 < size ? v_base + slot[t + 1] * args.v_stride : even;
      interleave(even, odd, args.value_dim, values32 + t / 2 * value_width);
    }
    std::fill(values + (size + 1) / 2 * value_width, values + width / 2 * value_width, 0.f);
    at::native::cpublas::brgemm(
        padded_rows, value_width, width, kWideBlock, value_width, value_width, true, weights16,
        reinterpret_cast<BF16*>(values), acc);
  }
  at::native::cpublas::brgemm_release();
  finish_tile(args, task, kv_head, rows, acc, value_width, maximum, sum);
}

} // namespace portable_cpu

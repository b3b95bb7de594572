// FlashAttention-style online softmax, one tile of queries per KV head, blocks of kBlock cached tokens.
//
// A tile's rows are (token, query head of the group), so a decoding row and a prefill chunk differ only in
// the number of rows, and every loaded key serves the whole group (GQA, MQA). Keys are gathered through the
// token table, widened to float and transposed once per block; values are used as they lie for short tiles
// and widened once for long ones.

#include <ATen/Parallel.h>

#include <atomic>

#include "attention_tile.h"
#include "microkernel.h"

namespace portable_cpu {
namespace {

// Bytes of a token's keys that are read together while decoding.
constexpr int64_t kReadBytes = 1024;

// Softmax of one block's scores, row by row; what was accumulated before is rescaled.
template <typename KV>
void weigh_block(
    const AttentionArgs<KV>& args, const Task& task, int64_t block, int64_t size, int64_t rows, float* scores,
    float* acc, int64_t value_width, float* maximum, float* sum) {
  const int64_t group = args.heads / args.kv_heads;
  const int64_t width = round_up(size, kLanes);
  for (int64_t r = 0; r < rows; ++r) {
    const Visible range = visible(args, task, task.position + r / group);
    const int64_t begin = std::max<int64_t>(range.begin - block, 0);
    const int64_t end = std::min<int64_t>(range.end - block, size);
    float* row = scores + r * kBlock;
    if (begin >= end) {
      std::fill(row, row + width, 0.f);
      continue;
    }
    const float factor = softmax_row(row, begin, end, width, args.scale, args.logit_cap, maximum[r], sum[r]);
    if (factor != 1.f) {
      scale_row(acc + r * value_width, factor, value_width);
    }
  }
}

template <typename KV>
void load_queries(
    const AttentionArgs<KV>& args, const Task& task, int64_t kv_head, int64_t rows, float* q, int64_t width) {
  const int64_t group = args.heads / args.kv_heads;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t offset = (task.first_query + r / group) * args.q_stride +
        (kv_head * group + r % group) * args.q_head_stride;
    with_query_type(args.q_type, [&](auto type) {
      widen_row(static_cast<const decltype(type)*>(args.q) + offset, args.head_dim, q + r * width);
    });
  }
}

// A tile of many rows against one KV head.
template <typename KV>
void run_task(const AttentionArgs<KV>& args, const Task& task, int64_t kv_head, Scratch& scratch) {
  const int64_t rows = task.queries * (args.heads / args.kv_heads);
  const int64_t key_width = round_up(args.head_dim, kLanes);
  const int64_t value_width = round_up(args.value_dim, kLanes);

  float* q = scratch.take(
      rows * (key_width + value_width + kBlock + 2) + 2 * kBlock * key_width + kBlock * value_width + 8 * 16);
  const auto next = [](float* previous, int64_t size) { return previous + round_up(size, 16); };
  float* acc = next(q, rows * key_width);               // (rows, value_width), not yet divided by the sum
  float* scores = next(acc, rows * value_width);        // (rows, kBlock)
  float* keys = next(scores, rows * kBlock);            // (kBlock, key_width)
  float* keys_t = next(keys, kBlock * key_width);       // (key_width, kBlock)
  float* values = next(keys_t, kBlock * key_width);     // (kBlock, value_width)
  float* maximum = next(values, kBlock * value_width);  // (rows,)
  float* sum = maximum + rows;                          // (rows,)

  load_queries(args, task, kv_head, rows, q, key_width);
  std::fill(acc, acc + rows * value_width, 0.f);
  std::fill(maximum, maximum + rows, kMinusInfinity);
  std::fill(sum, sum + rows, 0.f);

  const int32_t* slots = args.table + task.table_row * args.table_stride;
  const KV* k_base = args.k_cache + kv_head * args.k_head_stride;
  const KV* v_base = args.v_cache + kv_head * args.v_head_stride;

  for (int64_t block = visible(args, task, task.position).begin; block < task.kv_end; block += kBlock) {
    const int64_t size = std::min<int64_t>(kBlock, task.kv_end - block);
    const int64_t width = round_up(size, kLanes);
    const int32_t* slot = slots + block;
    for (int64_t t = 0; t < size; ++t) {
      widen_row(k_base + slot[t] * args.k_stride, args.head_dim, keys + t * key_width);
    }
    std::fill(keys + size * key_width, keys + width * key_width, 0.f);
    at::vec::transpose_mxn<float>(
        keys, key_width, keys_t, kBlock, static_cast<int>(width), static_cast<int>(key_width));
    multiply<float>(
        q, key_width, [&](int64_t t) { return keys_t + t * kBlock; }, args.head_dim, scores, kBlock, rows,
        width / kLanes, false);
    weigh_block(args, task, block, size, rows, scores, acc, value_width, maximum, sum);
    for (int64_t t = 0; t < size; ++t) {
      widen_row(v_base + slot[t] * args.v_stride, args.value_dim, values + t * value_width);
    }
    multiply<float>(
        scores, kBlock, [&](int64_t t) { return values + t * value_width; }, size, acc, value_width, rows,
        value_width / kLanes, true);
  }

  finish_tile(args, task, kv_head, rows, acc, value_width, maximum, sum);
}

// A tile of few rows, decoding, against `heads` neighbouring KV heads.
//
// The tokens of a request lie scattered over the pool, and reading them is most of the work: what the heads need of
// a token is copied together, as it lies, so that memory sees one longer read instead of one per head.
template <typename KV>
void run_decode_task(
    const AttentionArgs<KV>& args, const Task& task, int64_t first_head, int64_t heads, Scratch& scratch) {
  const int64_t rows = task.queries * (args.heads / args.kv_heads);
  const int64_t key_width = round_up(args.head_dim, kLanes);
  const int64_t value_width = round_up(args.value_dim, kLanes);
  const int64_t key_size = heads * args.head_dim, value_size = heads * args.value_dim;
  const bool widen_values = value_width != args.value_dim;

  const auto floats_of = [](int64_t elements) { return (elements * int64_t(sizeof(KV)) + 3) / 4; };
  const int64_t state = rows * (key_width + value_width + 2);
  float* states = scratch.take(
      heads * round_up(state, 16) + rows * kBlock + floats_of(kBlock * (key_size + value_size)) +
      kBlock * value_width + 8 * 16);
  const auto next = [](float* previous, int64_t size) { return previous + round_up(size, 16); };
  float* scores = next(states, heads * round_up(state, 16));          // (rows, kBlock)
  float* values_wide = next(scores, rows * kBlock);                   // (kBlock, value_width)
  float* keys_place = next(values_wide, kBlock * value_width);        // (kBlock, heads, head_dim) of KV
  float* values_place = next(keys_place, floats_of(kBlock * key_size)); // (kBlock, heads, value_dim) of KV
  auto* keys = reinterpret_cast<KV*>(keys_place);
  auto* values = reinterpret_cast<KV*>(values_place);
  // Per head: queries (rows, key_width), accumulators (rows, value_width), maximum and sum (rows,).
  const auto queries_of = [&](int64_t head) { return states + head * round_up(state, 16); };
  const auto acc_of = [&](int64_t head) { return queries_of(head) + rows * key_width; };
  const auto maximum_of = [&](int64_t head) { return acc_of(head) + rows * value_width; };

  for (int64_t head = 0; head < heads; ++head) {
    load_queries(args, task, first_head + head, rows, queries_of(head), key_width);
    std::fill(acc_of(head), acc_of(head) + rows * value_width, 0.f);
    std::fill(maximum_of(head), maximum_of(head) + rows, kMinusInfinity);
    std::fill(maximum_of(head) + rows, maximum_of(head) + 2 * rows, 0.f);
  }

  const int32_t* slots = args.table + task.table_row * args.table_stride;
  const KV* k_base = args.k_cache + first_head * args.k_head_stride;
  const KV* v_base = args.v_cache + first_head * args.v_head_stride;

  for (int64_t block = visible(args, task, task.position).begin; block < task.kv_end; block += kBlock) {
    const int64_t size = std::min<int64_t>(kBlock, task.kv_end - block);
    const int32_t* slot = slots + block;
    for (int64_t t = 0; t < size; ++t) {
      std::memcpy(keys + t * key_size, k_base + slot[t] * args.k_stride, key_size * sizeof(KV));
    }
    for (int64_t t = 0; t < size; ++t) {
      std::memcpy(values + t * value_size, v_base + slot[t] * args.v_stride, value_size * sizeof(KV));
    }
    for (int64_t head = 0; head < heads; ++head) {
      float* acc = acc_of(head);
      float* maximum = maximum_of(head);
      const KV* value = values + head * args.value_dim;
      dot<KV>(
          queries_of(head), key_width, args.head_dim,
          [&](int64_t t) { return keys + t * key_size + head * args.head_dim; }, size, scores, kBlock, rows);
      weigh_block(args, task, block, size, rows, scores, acc, value_width, maximum, maximum + rows);
      if (widen_values) {
        for (int64_t t = 0; t < size; ++t) {
          widen_row(value + t * value_size, args.value_dim, values_wide + t * value_width);
        }
        multiply<float>(
            scores, kBlock, [&](int64_t t) { return values_wide + t * value_width; }, size, acc, value_width, rows,
            value_width / kLanes, true);
      } else {
        multiply<KV>(
            scores, kBlock, [&](int64_t t) { return value + t * value_size; }, size, acc, value_width, rows,
            value_width / kLanes, true);
      }
    }
  }

  for (int64_t head = 0; head < heads; ++head) {
    finish_tile(
        args, task, first_head + head, rows, acc_of(head), value_width, maximum_of(head), maximum_of(head) + rows);
  }
}

// KV heads that a decoding task takes together: those of a token that fill about kReadBytes.
template <typename KV>
int64_t heads_together(const AttentionArgs<KV>& args, int64_t num_tasks, int64_t threads) {
  const bool adjacent = args.k_head_stride == args.head_dim && args.v_head_stride == args.value_dim;
  if (!adjacent || num_tasks < 2 * threads) {
    return 1; // then heads are what keeps the threads busy
  }
  int64_t heads = std::clamp<int64_t>(
      kReadBytes / (args.head_dim * static_cast<int64_t>(sizeof(KV))), 1, args.kv_heads);
  while (args.kv_heads % heads != 0) {
    --heads;
  }
  return heads;
}

// out = sum_s exp(m_s - m) acc_s / sum_s exp(m_s - m) sum_s, over the splits s of one token and head.
template <typename KV>
void run_merge(const AttentionArgs<KV>& args, const Merge& merge, int64_t token, int64_t head) {
  const int64_t record = args.value_dim + 2;
  const auto part = [&](int64_t split) {
    return args.workspace + ((merge.partial + split * merge.queries + token) * args.heads + head) * record;
  };
  float maximum = kMinusInfinity;
  for (int64_t s = 0; s < merge.splits; ++s) {
    maximum = std::max(maximum, part(s)[args.value_dim]);
  }
  float sum = 0.f;
  for (int64_t s = 0; s < merge.splits; ++s) {
    // A split outside the sliding window has maximum -inf and sum 0.
    float* weight = part(s) + args.value_dim;
    *weight = *weight == kMinusInfinity ? 0.f : std::exp(*weight - maximum);
    sum += *weight * weight[1];
  }
  const Vec inverse(sum > 0.f ? 1.f / sum : 0.f);
  write_out(args, merge.first_query + token, head, [&](int64_t i, int64_t count) {
    Vec total(0.f);
    for (int64_t s = 0; s < merge.splits; ++s) {
      const float* record_of = part(s);
      total = at::vec::fmadd(Vec(record_of[args.value_dim]), load_upto(record_of + i, count), total);
    }
    return total * inverse;
  });
}

} // namespace

template <typename KV>
void attention(
    const AttentionArgs<KV>& args, const Task* tasks, int64_t num_tasks, const Merge* merges,
    int64_t num_merges) {
  const int64_t together = heads_together(args, num_tasks, at::get_num_threads());
  const int64_t parts = args.kv_heads / together; // of a task
  const int64_t items = num_tasks * parts;
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), items));
  // Tasks differ in length and cores in speed: threads take the next task when they are free.
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
        const Task& task = tasks[item / parts];
        const int64_t first = item % parts * together;
        if (task.queries * args.heads / args.kv_heads <= kDotRows) {
          run_decode_task(args, task, first, together, scratch);
          continue;
        }
        for (int64_t head = first; head < first + together; ++head) {
          if constexpr (std::is_same_v<KV, c10::BFloat16>) {
            if (can_run_task_bf16(args)) {
              run_task_bf16(args, task, head, scratch);
              continue;
            }
          }
          run_task(args, task, head, scratch);
        }
      }
    }
  });
  if (num_merges == 0) {
    return;
  }
  at::parallel_for(0, num_merges * args.heads, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const Merge& merge = merges[item / args.heads];
      for (int64_t token = 0; token < merge.queries; ++token) {
        run_merge(args, merge, token, item % args.heads);
      }
    }
  });
}

#define INSTANTIATE(KV) \
  template void attention<KV>(const AttentionArgs<KV>&, const Task*, int64_t, const Merge*, int64_t);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)

} // namespace portable_cpu

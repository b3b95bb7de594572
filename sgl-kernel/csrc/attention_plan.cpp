#include "attention_plan.h"

#include <algorithm>

namespace portable_cpu {

Plan make_plan(
    const int64_t* table_rows, const int64_t* lengths, const int64_t* extends, int64_t sequences,
    int64_t queries_per_kv_head, bool causal) {
  Plan plan;
  const int64_t tile = std::max<int64_t>(1, kTileRows / queries_per_kv_head);
  int64_t first_query = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t prefix = lengths[s] - extends[s];
    for (int64_t offset = 0; offset < extends[s]; offset += tile) {
      const int64_t queries = std::min(tile, extends[s] - offset);
      const int64_t position = prefix + offset;
      const int64_t length = causal ? position + queries : lengths[s];
      const int64_t splits = std::max<int64_t>(1, length / (kSplitTokens * queries));
      const int64_t step = ((length + splits - 1) / splits + kBlock - 1) / kBlock * kBlock;
      Task task{};
      task.table_row = static_cast<int32_t>(table_rows[s]);
      task.first_query = static_cast<int32_t>(first_query + offset);
      task.queries = static_cast<int32_t>(queries);
      task.position = static_cast<int32_t>(position);
      task.partial = -1;
      if (step >= length) {
        task.kv_end = static_cast<int32_t>(length);
        plan.tasks.push_back(task);
        continue;
      }
      Merge merge{task.first_query, task.queries, static_cast<int32_t>(plan.partial_rows), 0};
      for (int64_t begin = 0; begin < length; begin += step) {
        task.kv_begin = static_cast<int32_t>(begin);
        task.kv_end = static_cast<int32_t>(std::min(length, begin + step));
        task.partial = static_cast<int32_t>(plan.partial_rows);
        plan.partial_rows += queries;
        plan.tasks.push_back(task);
        ++merge.splits;
      }
      plan.merges.push_back(merge);
    }
    first_query += extends[s];
  }
  const auto cost = [](const Task& t) { return int64_t(t.kv_end - t.kv_begin) * (t.queries + 4); };
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(), [&](const Task& a, const Task& b) {
    return cost(a) > cost(b);
  });
  return plan;
}

} // namespace portable_cpu

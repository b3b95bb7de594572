// How one step's attention is cut into tasks; computed once per step and reused by every layer.
#pragma once

#include <cstdint>
#include <vector>

namespace portable_cpu {

// Queries of one sequence that share a KV head are processed as one tile of about this many rows.
constexpr int64_t kTileRows = 128;
// A decoding row reads at most about twice this many cached tokens per task; longer contexts are split so
// that one long request still uses every core. Tiles with more queries get proportionally longer splits.
// A constant, not a function of the batch: a row's result does not depend on what runs beside it.
constexpr int64_t kSplitTokens = 512;
// Cached tokens per inner step (a multiple of every vector width).
constexpr int64_t kBlock = 64;

// Rows up to which a dot product per cached token beats transposing keys for a matrix product.
constexpr int64_t kDotRows = 8;

// One tile of queries against one range of cached tokens, for every KV head.
struct Task {
  int32_t table_row;   // row of the token table (request)
  int32_t first_query; // row of q and out
  int32_t queries;     // consecutive tokens of the sequence
  int32_t position;    // of the first query in its sequence
  int32_t kv_begin;    // cached positions [kv_begin, kv_end)
  int32_t kv_end;
  int32_t partial;     // first row of the workspace, or -1: the whole range is here, write to out
  int32_t unused;
};
static_assert(sizeof(Task) == 8 * sizeof(int32_t));

// Combines the `splits` partial results of `queries` tokens.
struct Merge {
  int32_t first_query;
  int32_t queries;
  int32_t partial;
  int32_t splits;
};
static_assert(sizeof(Merge) == 4 * sizeof(int32_t));

struct Plan {
  std::vector<Task> tasks; // longest first
  std::vector<Merge> merges;
  int64_t partial_rows = 0; // workspace rows, each one token of all heads
};

// lengths: cached tokens per sequence including the new ones; extends: new tokens, both (sequences,).
Plan make_plan(
    const int64_t* table_rows, const int64_t* lengths, const int64_t* extends, int64_t sequences,
    int64_t queries_per_kv_head, bool causal);

} // namespace portable_cpu

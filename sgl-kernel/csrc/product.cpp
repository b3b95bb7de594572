// Products with weights of a model, x W^T + b in bfloat16, for CPUs with AVX512-BF16; product_amx.cpp where there is AMX.
//
// A decoding step reads every weight for a few rows, so it lasts as long as the reading. Weights lie in the order in
// which they are read, and what the next block needs is fetched while this one is computed. Every result is one sum
// in one order, whatever the other rows are.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>
#include <utility>

#include "operators.h"
#include "product.h"

namespace portable_cpu::operators {
namespace {

// With 12 rows the sums of a block's two vectors take 24 of the 32 registers.
constexpr int64_t kRows = 12;

#if defined(__AVX512BF16__)

struct Tile {
  const BF16* x;         // rows of the input
  int64_t x_stride;
  const BF16* weights;   // one block, (pairs, kColumns, 2)
  int64_t pairs;
  const BF16* bias;      // of the block, or null
  BF16* out;
  int64_t out_stride;
  const BF16* ahead;     // where to fetch from meanwhile
};

inline void store_rounded(BF16* target, __m512 value) {
  const auto rounded = _mm512_cvtneps_pbh(value);
  std::memcpy(target, &rounded, sizeof rounded);
}

// Rows of x against one block, fetching `Lines` cache lines ahead at every pair.
template <int Rows, int Lines>
void multiply_tile(const Tile& tile) {
  __m512 left[Rows], right[Rows];
  for (int r = 0; r < Rows; ++r) {
    left[r] = right[r] = _mm512_setzero_ps();
  }
  const char* ahead = reinterpret_cast<const char*>(tile.ahead);
  for (int64_t pair = 0; pair < tile.pairs; ++pair) {
    const BF16* weights = tile.weights + pair * kPairElements;
    const auto first = (__m512bh)_mm512_loadu_si512(weights);
    const auto second = (__m512bh)_mm512_loadu_si512(weights + kColumns);
    for (int line = 0; line < Lines; ++line, ahead += 64) {
      _mm_prefetch(ahead, _MM_HINT_T1);
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      int32_t inputs;
      std::memcpy(&inputs, tile.x + r * tile.x_stride + 2 * pair, sizeof inputs);
      const auto both = (__m512bh)_mm512_set1_epi32(inputs);
      left[r] = _mm512_dpbf16_ps(left[r], first, both);
      right[r] = _mm512_dpbf16_ps(right[r], second, both);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    if (tile.bias != nullptr) {
      left[r] = _mm512_add_ps(left[r], widen(tile.bias));
      right[r] = _mm512_add_ps(right[r], widen(tile.bias + kColumns / 2));
    }
    store_rounded(tile.out + r * tile.out_stride, left[r]);
    store_rounded(tile.out + r * tile.out_stride + kColumns / 2, right[r]);
  }
}

using MultiplyTile = void (*)(const Tile&);

template <int Lines, size_t... Rows>
constexpr std::array<MultiplyTile, kRows> tiles_of(std::index_sequence<Rows...>) {
  return {multiply_tile<static_cast<int>(Rows) + 1, Lines>...};
}

// By cache lines fetched per pair and rows less one.
constexpr std::array<std::array<MultiplyTile, kRows>, 3> kTiles = {
    tiles_of<0>(std::make_index_sequence<kRows>()), tiles_of<1>(std::make_index_sequence<kRows>()),
    tiles_of<2>(std::make_index_sequence<kRows>())};

// All rows against one block, in tiles of nearly equal height.
void multiply_block(Tile tile, int64_t rows) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const BF16* next_block = tile.weights + tile.pairs * kPairElements;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t height = rows / tiles + (t < rows % tiles);
    // One tile reads this block 4 KB before it is needed. The first two of several read the next, half each.
    const int lines = tiles == 1 ? 2 : t < 2 ? 1 : 0;
    tile.ahead = tiles == 1 ? tile.weights + 2048 : next_block + t * tile.pairs * kPairElements / 2;
    kTiles[lines][height - 1](tile);
    tile.x += height * tile.x_stride;
    tile.out += height * tile.out_stride;
  }
}

void multiply_in_vectors(const Product& product, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const BF16* bias = product.bias == nullptr ? nullptr : product.bias + block * kColumns;
    const Tile tile{product.x, product.x_stride, product.weights + block * product.pairs * kPairElements, product.pairs,
                    bias, product.out + block * kColumns, product.columns, nullptr};
    multiply_block(tile, product.rows);
  }
}

#endif

} // namespace

Tensor pack_weight(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kBFloat16,
              "pack_weight: a contiguous bfloat16 matrix expected");
  const int64_t columns = weight.size(0), size = weight.size(1);
  TORCH_CHECK(columns % kColumns == 0 && size % 2 == 0, "pack_weight: (", columns, ", ", size,
              ") are not multiples of (", kColumns, ", 2)");
  Tensor packed = at::empty({columns / kColumns, size / 2, kColumns, 2}, weight.options());
  const BF16* source = weight.const_data_ptr<BF16>();
  BF16* target = packed.mutable_data_ptr<BF16>();
  at::parallel_for(0, packed.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin * kColumns; column < end * kColumns; ++column) {
      BF16* pairs = target + column / kColumns * size * kColumns + column % kColumns * 2;
      for (int64_t pair = 0; pair < size / 2; ++pair) {
        std::memcpy(pairs + pair * kPairElements, source + column * size + 2 * pair, 2 * sizeof(BF16));
      }
    }
  });
  return packed;
}

Tensor product(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias) {
  TORCH_CHECK(packed.dim() == 4 && packed.is_contiguous() && packed.scalar_type() == at::kBFloat16 &&
                  packed.size(2) == kColumns && packed.size(3) == 2,
              "product: the weight was not packed by pack_weight");
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && x.scalar_type() == at::kBFloat16 && x.size(1) == 2 * packed.size(1),
              "product: x must be bfloat16 (rows, ", 2 * packed.size(1), "), last dimension contiguous");
  const int64_t rows = x.size(0), columns = packed.size(0) * kColumns;
  if (bias.has_value()) {
    TORCH_CHECK(bias->is_contiguous() && bias->scalar_type() == at::kBFloat16 && bias->numel() == columns,
                "product: bias must be bfloat16 and have ", columns, " elements");
  }
  Tensor out = at::empty({rows, columns}, x.options());
#if defined(__AVX512BF16__)
  const Product whole{x.const_data_ptr<BF16>(), rows, x.stride(0), packed.const_data_ptr<BF16>(), packed.size(1),
                      bias.has_value() ? bias->const_data_ptr<BF16>() : nullptr, out.mutable_data_ptr<BF16>(), columns};
  const auto multiply =
      whole.pairs % kTilePairs == 0 && matrix_unit_usable() ? multiply_in_tiles : multiply_in_vectors;
  at::parallel_for(0, rows > 0 ? packed.size(0) : 0, 1, [&](int64_t begin, int64_t end) {
    multiply(whole, begin, end);
  });
#else
  TORCH_CHECK(false, "product: these kernels were built for a CPU without AVX512-BF16");
#endif
  return out;
}

} // namespace portable_cpu::operators

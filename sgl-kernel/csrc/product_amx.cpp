// Products with packed weights in the tiles of AMX.
//
// The packed order is the one in which a tile takes a weight, so both ways read the same copy. One instruction
// multiplies up to 16 rows with 16 columns; what a few rows cost is still the reading of the weights.

#include "product.h"

#if defined(__AVX512BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#endif

namespace portable_cpu {

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColumns = 16;
constexpr int64_t kTileBytes = 64; // of one row of a tile
constexpr int64_t kLine = 64;

// Tiles by number: four sums, two of inputs, two of weights. The instructions take literals.
enum Tile { kWeights = 6, kTiles = 8 };

struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfiguration(int64_t height) {
    for (int tile = 0; tile < kTiles; ++tile) {
      row_bytes[tile] = kTileBytes;
      rows[tile] = static_cast<uint8_t>(tile < kWeights ? height : kTileRows);
    }
  }
};
static_assert(sizeof(TileConfiguration) == 64);

// Sums of one tile of rows to bfloat16, with the bias.
void store_rows(const float* sums, int64_t height, const BF16* bias, BF16* out, int64_t out_stride) {
  const __m512 left = bias == nullptr ? _mm512_setzero_ps() : widen(bias);
  const __m512 right = bias == nullptr ? _mm512_setzero_ps() : widen(bias + kTileColumns);
  for (int64_t row = 0; row < height; ++row, sums += kColumns, out += out_stride) {
    const auto first = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_loadu_ps(sums), left));
    const auto second = _mm512_cvtneps_pbh(_mm512_add_ps(_mm512_loadu_ps(sums + kTileColumns), right));
    std::memcpy(out, &first, sizeof first);
    std::memcpy(out + kTileColumns, &second, sizeof second);
  }
}

inline void fetch(const char* address, int64_t lines) {
  for (int64_t line = 0; line < lines; ++line) {
    _mm_prefetch(address + line * kLine, _MM_HINT_T1);
  }
}

// One or two tiles of rows, at x and x_next, against one block; the sums go to (height, kColumns) each.
template <bool Two>
void multiply_tiles(
    const BF16* x, const BF16* x_next, int64_t x_stride, const BF16* weights, int64_t pairs, const char* ahead,
    int64_t lines, float* sums, float* sums_next) {
  const int64_t x_bytes = x_stride * static_cast<int64_t>(sizeof(BF16));
  constexpr int64_t weight_bytes = kPairElements * sizeof(BF16);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t pair = 0; pair < pairs; pair += kTilePairs) {
    const BF16* block = weights + pair * kPairElements;
    fetch(ahead, lines);
    ahead += lines * kLine;
    _tile_loadd(6, block, weight_bytes);
    _tile_loadd(4, x + 2 * pair, x_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, block + 2 * kTileColumns, weight_bytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Two) {
      _tile_loadd(5, x_next + 2 * pair, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  constexpr int64_t sum_bytes = kColumns * sizeof(float);
  _tile_stored(0, sums, sum_bytes);
  _tile_stored(1, sums + kTileColumns, sum_bytes);
  if constexpr (Two) {
    _tile_stored(2, sums_next, sum_bytes);
    _tile_stored(3, sums_next + kTileColumns, sum_bytes);
  }
}

bool ask_for_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

} // namespace

bool matrix_unit_usable() {
  static const bool usable = ask_for_tiles();
  return usable;
}

void multiply_in_tiles(const Product& product, int64_t begin, int64_t end) {
  // Tiles of one height, so that one configuration does; the last begins early rather than being lower.
  const int64_t tiles = (product.rows + kTileRows - 1) / kTileRows;
  const int64_t height = (product.rows + tiles - 1) / tiles;
  const TileConfiguration configuration(height);
  // GCC's intrinsic names the first 8 bytes as what it reads: the others must not be left out.
  asm volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
  alignas(64) float sums[2][kTileRows * kColumns];
  const int64_t block_elements = product.pairs * kPairElements;
  for (int64_t block = begin; block < end; ++block) {
    const BF16* weights = product.weights + block * block_elements;
    const BF16* bias = product.bias == nullptr ? nullptr : product.bias + block * kColumns;
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const bool two = tile + 1 < tiles;
      const int64_t first = std::min(tile * height, product.rows - height);
      const int64_t second = std::min(first + height, product.rows - height);
      const BF16* x = product.x + first * product.x_stride;
      const BF16* x_next = product.x + second * product.x_stride;
      // A single pass reads this block a few KB before it is needed; the first of several reads the next block.
      const bool single = tiles <= 2;
      const char* ahead = reinterpret_cast<const char*>(single ? weights + 4096 : weights + block_elements);
      const int64_t lines = single || tile == 0 ? 2 * kTilePairs : 0;
      (two ? multiply_tiles<true> : multiply_tiles<false>)(
          x, x_next, product.x_stride, weights, product.pairs, ahead, lines, sums[0], sums[1]);
      store_rows(sums[0], height, bias, product.out + first * product.columns + block * kColumns, product.columns);
      if (two) {
        store_rows(sums[1], height, bias, product.out + second * product.columns + block * kColumns, product.columns);
      }
    }
  }
  _tile_release();
}

#else

bool matrix_unit_usable() {
  return false;
}

void multiply_in_tiles(const Product&, int64_t, int64_t) {}

#endif

} // namespace portable_cpu

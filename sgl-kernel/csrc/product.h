// What the two ways to multiply with a packed weight share: product.cpp in vector registers, product_amx.cpp in tiles.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace portable_cpu {

using BF16 = c10::BFloat16;

// Outputs of a block: two vectors, or the columns of two tiles.
constexpr int64_t kColumns = 32;
// Elements of a block that belong to one pair of inputs.
constexpr int64_t kPairElements = 2 * kColumns;

struct Product {
  const BF16* x;         // (rows, 2 * pairs)
  int64_t rows;
  int64_t x_stride;
  const BF16* weights;   // (columns / kColumns, pairs, kColumns, 2)
  int64_t pairs;
  const BF16* bias;      // (columns,), or null
  BF16* out;             // (rows, columns)
  int64_t columns;
};

#if defined(__AVX512BF16__)

// Sixteen elements of a bias.
inline __m512 widen(const BF16* source) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

#endif

// Pairs in a tile of the matrix unit; products with it take whole ones.
constexpr int64_t kTilePairs = 16;

// Whether this CPU has AMX with bfloat16 and the kernel lets this process use it.
bool matrix_unit_usable();

// Blocks begin to end of the product, in tiles. `pairs` must be a multiple of kTilePairs, `rows` positive.
void multiply_in_tiles(const Product& product, int64_t begin, int64_t end);

} // namespace portable_cpu

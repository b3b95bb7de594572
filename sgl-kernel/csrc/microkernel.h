// Register-blocked products of small float32 matrices: the two GEMMs inside attention.
#pragma once

#include "vec.h"

// The accumulators must live in registers, so these loops have to be unrolled completely; compilers' own
// limits stop short of that (8 times slower).
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace portable_cpu {

// Rows and vectors of one register tile. AVX-512 and NEON have 32 vector registers (24 accumulators + 4
// operands + 1 broadcast), AVX2 has 16 (12 + 2 + 1).
constexpr int kTileM = 6;
#if defined(CPU_CAPABILITY_AVX2)
constexpr int kTileV = 2;
#else
constexpr int kTileV = 4;
#endif

// C[M, V vectors] (+)= A[M, depth] * B[depth, V vectors]; `row_of(t)` points at row t of B.
template <int M, int V, typename T, typename RowOf>
inline void multiply_tile(
    const float* a, int64_t lda, const RowOf& row_of, int64_t depth, float* c, int64_t ldc, bool accumulate) {
  Vec sum[M][V];
  UNROLL
  for (int m = 0; m < M; ++m) {
    UNROLL
    for (int v = 0; v < V; ++v) {
      sum[m][v] = accumulate ? Vec::loadu(c + m * ldc + v * kLanes) : Vec(0.f);
    }
  }
  for (int64_t t = 0; t < depth; ++t) {
    const T* row = row_of(t);
    Vec b[V];
    UNROLL
    for (int v = 0; v < V; ++v) {
      b[v] = load_vec(row + v * kLanes);
    }
    UNROLL
    for (int m = 0; m < M; ++m) {
      const Vec scalar(a[m * lda + t]);
      UNROLL
      for (int v = 0; v < V; ++v) {
        sum[m][v] = at::vec::fmadd(scalar, b[v], sum[m][v]);
      }
    }
  }
  UNROLL
  for (int m = 0; m < M; ++m) {
    UNROLL
    for (int v = 0; v < V; ++v) {
      sum[m][v].store(c + m * ldc + v * kLanes);
    }
  }
}

template <int M, typename T, typename RowOf>
inline void multiply_rows(
    const float* a, int64_t lda, const RowOf& row_of, int64_t depth, float* c, int64_t ldc, int64_t vectors,
    bool accumulate) {
  int64_t v = 0;
  const auto shifted = [&](int64_t t) { return row_of(t) + v * kLanes; };
  for (; v + kTileV <= vectors; v += kTileV) {
    multiply_tile<M, kTileV, T>(a, lda, shifted, depth, c + v * kLanes, ldc, accumulate);
  }
  for (; v < vectors; ++v) {
    multiply_tile<M, 1, T>(a, lda, shifted, depth, c + v * kLanes, ldc, accumulate);
  }
}

// scores[m, t] = A[m, :dim] . row_of(t) for t < count: the products with few rows, where transposing B would cost
// more than it saves. A's rows are zero-padded to `lda`, a multiple of kLanes; so are the scores, to whole vectors.
template <int M, typename T, typename RowOf>
inline void dot_rows(
    const float* a, int64_t lda, int64_t dim, const RowOf& row_of, int64_t count, float* scores, int64_t ldc) {
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t size = std::min(kLanes, count - first);
    Vec partial[M][kLanes];
    for (int64_t t = 0; t < size; ++t) {
      const T* row = row_of(first + t);
      Vec sum[M];
      UNROLL
      for (int m = 0; m < M; ++m) {
        sum[m] = Vec(0.f);
      }
      for_each_vector(dim, [&](int64_t i, int64_t lanes) {
        const Vec b = load_upto(row + i, lanes);
        UNROLL
        for (int m = 0; m < M; ++m) {
          sum[m] = at::vec::fmadd(Vec::loadu(a + m * lda + i), b, sum[m]);
        }
      });
      UNROLL
      for (int m = 0; m < M; ++m) {
        partial[m][t] = sum[m];
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int64_t t = size; t < kLanes; ++t) {
        partial[m][t] = Vec(0.f);
      }
      sum_each(partial[m]).store(scores + m * ldc + first);
    }
  }
}

template <typename T, typename RowOf>
inline void dot(
    const float* a, int64_t lda, int64_t dim, const RowOf& row_of, int64_t count, float* scores, int64_t ldc,
    int64_t rows) {
  for (; rows >= 4; rows -= 4, a += 4 * lda, scores += 4 * ldc) {
    dot_rows<4, T>(a, lda, dim, row_of, count, scores, ldc);
  }
  switch (rows) {
    case 3: return dot_rows<3, T>(a, lda, dim, row_of, count, scores, ldc);
    case 2: return dot_rows<2, T>(a, lda, dim, row_of, count, scores, ldc);
    case 1: return dot_rows<1, T>(a, lda, dim, row_of, count, scores, ldc);
    default: return;
  }
}

// C[rows, vectors * kLanes] (+)= A[rows, depth] * B, B's rows given by `row_of` and converted on the fly.
template <typename T, typename RowOf>
inline void multiply(
    const float* a, int64_t lda, const RowOf& row_of, int64_t depth, float* c, int64_t ldc, int64_t rows,
    int64_t vectors, bool accumulate) {
  int64_t m = 0;
  for (; m + kTileM <= rows; m += kTileM) {
    multiply_rows<kTileM, T>(a + m * lda, lda, row_of, depth, c + m * ldc, ldc, vectors, accumulate);
  }
  a += m * lda;
  c += m * ldc;
  switch (rows - m) {
    case 5: return multiply_rows<5, T>(a, lda, row_of, depth, c, ldc, vectors, accumulate);
    case 4: return multiply_rows<4, T>(a, lda, row_of, depth, c, ldc, vectors, accumulate);
    case 3: return multiply_rows<3, T>(a, lda, row_of, depth, c, ldc, vectors, accumulate);
    case 2: return multiply_rows<2, T>(a, lda, row_of, depth, c, ldc, vectors, accumulate);
    case 1: return multiply_rows<1, T>(a, lda, row_of, depth, c, ldc, vectors, accumulate);
    default: return;
  }
}

} // namespace portable_cpu

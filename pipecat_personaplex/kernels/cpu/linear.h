// Products of float rows with int8 and int4 weights, in integers.
//
// The rows are quantised too.
//   For int8 weights a row x becomes 16 bits, q = round(x / s) with s = max|x| / 32512, split into
//   two signed bytes, q = 256 high + low, which are multiplied one after the other.
//   For int4 weights each group of 128 inputs of a row becomes 8 bits, with a scale of its own.
// Both add little to the error of the weights. Products are exact in int32, so a result depends
// neither on the other rows nor on which of the instructions below computed it.
//
// Layout of a weight [N, K]: tiles of 16 outputs; a tile is a sequence of blocks.
//   int8: a block is 64 inputs, 1 KB: [16 quads of inputs][16 outputs][4 inputs], signed.
//   int4: a block is 256 inputs, 2 KB: [32 quads][16 outputs][4 inputs], two codes a byte: low
//         halves are the first 128 inputs (one group), high halves the last 128.
// Layout of the activations: [K / 64][halves][rows, padded][64]; int8 has two halves, int4 one.
// vpdpbusd multiplies an unsigned by a signed byte. int4 codes are unsigned (8 is zero), and the
// activations signed. For int8 the activations are made unsigned by adding 128. Sums of the other
// side take the 8 and the 128 off again. High halves of a byte are not shifted down: their product
// is 16 times too large.
#pragma once
#include <algorithm>
#include <utility>
#include "vectors.h"

static const int TILE = 16, QUADS = 16, DEPTH = 64, BLOCK8 = 1024, BLOCK4 = 2048;
static const long GROUP = 128;
static const float Q_MAX = 32512.0f;
static const int MOST_ROWS = 16;  // of one call of a microkernel
static const long SUPERBLOCK = 1 << 20;  // bytes of weights that stay in a cache for many rows

struct Product {
  int int4;              // else int8
  const uint8_t* weight;
  const void* scale;     // int8: float [N padded]; int4: bfloat16 [N / 16][K / 128][16]
  const int32_t* sums;   // int8: sum of each output's weights, times 128
  long blocks;           // of 64 inputs
  const uint8_t* act;    // quantised rows
  // int4: of each group of each row, [K / 128][rows padded]
  const int32_t* group_sums;    // 8 times the sum of its q
  const float* group_scales;
  long padded;           // rows in act
  bool amx;
  const uint8_t* tile(long t) const { return weight + t * blocks * (int4 ? BLOCK4 / 4 : BLOCK8); }
  const uint8_t* rows(long block, int half, long row) const {
    return act + ((block * (int4 ? 1 : 2) + half) * padded + row) * DEPTH;
  }
};

static inline __m512i quad(const uint8_t* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

static inline __m512 join(__m512i high, __m512i low) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), splat(256.0f), _mm512_cvtepi32_ps(low));
}

// int8: 16 results of a row and a tile, before the scale of the row.
static inline void finish8(const Product& p, long tile, __m512i high, __m512i low, float* out) {
  const __m512i sums = _mm512_loadu_si512(p.sums + tile * TILE);
  const __m512 y = join(_mm512_sub_epi32(high, sums), _mm512_sub_epi32(low, sums));
  _mm512_storeu_ps(out, _mm512_mul_ps(y, _mm512_loadu_ps((const float*)p.scale + tile * TILE)));
}

// Add products of unsigned and signed bytes. In assembler: for the intrinsic, GCC 12 copies each sum
// to another register and back, and keeps some of the sums in memory.
static inline void dot(__m512i& sum, __m512i bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes));
}

// Call f with 0, 1, ... N - 1 as constants. Sums that are indexed so stay in registers; in a loop,
// GCC 12 keeps an array of them in memory.
template <class F, int... I>
static inline __attribute__((always_inline)) void each(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
static inline __attribute__((always_inline)) void each(F f) {
  each(f, std::make_integer_sequence<int, N>());
}
#define EACH(n, i, body) each<n>([&](auto i) __attribute__((always_inline)) body)

// The kernels below multiply M rows and T tiles; the sums of one half or group stay in registers.
static const int MOST_SUMS = 16;  // M * T
static const int MOST_AT_ONCE = 8, TILES_AT_ONCE = 2;  // rows and tiles of one call
static const int CHUNK8 = 4;  // blocks of a tile that stay in the first cache for both halves

// int8: results of M rows and T tiles, before the scale of the row: out [M][T][16].
template <int M, int T>
static __attribute__((noinline)) void vnni8(const Product& p, const long* tiles, long row,
                                            float* out) {
  static_assert(M * T <= MOST_SUMS, "sums do not fit in registers");
  alignas(64) int32_t sums[2][M * T][TILE] = {};
  for (long first = 0; first < p.blocks; first += CHUNK8) {
    const long last = std::min(p.blocks, first + CHUNK8);
    for (int half = 0; half < 2; half++) {
      __m512i sum[M * T];
      EACH(M * T, i, { sum[i] = _mm512_load_si512(sums[half][i]); });
      for (long b = first; b < last; b++) {
        const uint8_t *x = p.rows(b, half, row), *w[T];
        EACH(T, t, { w[t] = p.tile(tiles[t]) + b * BLOCK8; });
        for (int k = 0; k < QUADS; k++) {
          __m512i v[T];
          EACH(T, t, {
            v[t] = _mm512_load_si512(w[t] + k * 64);
            if (half == 0) _mm_prefetch((const char*)w[t] + k * 64 + PREFETCH_INT8, _MM_HINT_T0);
          });
          EACH(M, m, {
            const __m512i a = quad(x + m * DEPTH + k * 4);
            EACH(T, t, { dot(sum[m * T + t], a, v[t]); });
          });
        }
      }
      EACH(M * T, i, { _mm512_store_si512(sums[half][i], sum[i]); });
    }
  }
  for (int m = 0; m < M; m++)
    for (int t = 0; t < T; t++)
      finish8(p, tiles[t], _mm512_load_si512(sums[0][m * T + t]),
              _mm512_load_si512(sums[1][m * T + t]), out + (m * T + t) * TILE);
}

static inline const uint16_t* scales4(const Product& p, long tile, long group) {
  return (const uint16_t*)p.scale + (tile * (p.blocks / 2) + group) * TILE;
}

static inline __m512 scale4(const Product& p, long tile, long group) {
  const uint16_t* s = scales4(p, tile, group);
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)s));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// Add a group of int4. The integers are exact, so only the order of the groups counts.
static inline __m512 add_group(const Product& p, __m512 sum, __m512i q, long group, long row,
                               __m512 scale) {
  const long at = group * p.padded + row;
  q = _mm512_sub_epi32(q, _mm512_set1_epi32(p.group_sums[at]));
  const __m512 both = _mm512_mul_ps(scale, splat(p.group_scales[at]));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), both, sum);
}

// Add one group of 128 inputs, in the low or high halves of a block's bytes, to sums [M][T][16].
template <int M, int T, bool HIGH>
static __attribute__((noinline)) void group4(const Product& p, const long* tiles, long b,
                                             long row, float* sums) {
  const long group = b / 2 + HIGH;
  const __m512i mask = _mm512_set1_epi8(HIGH ? (char)240 : 15);
  const uint8_t* w[T];
  EACH(T, t, {
    w[t] = p.tile(tiles[t]) + b / 4 * BLOCK4;
    const char* scales = (const char*)scales4(p, tiles[t], group);
    if (!HIGH) _mm_prefetch(scales + PREFETCH_SCALE, _MM_HINT_T0);
  });
  __m512i sum[M * T];
  EACH(M * T, i, { sum[i] = _mm512_setzero_si512(); });
  for (int part = 0; part < 2; part++) {  // 64 inputs
    const uint8_t* x = p.rows(b + 2 * HIGH + part, 0, row);
    for (int k = 0; k < QUADS; k++) {
      __m512i v[T];
      EACH(T, t, {
        const uint8_t* from = w[t] + part * BLOCK8 + k * 64;
        v[t] = _mm512_and_si512(_mm512_load_si512(from), mask);
        if (!HIGH) _mm_prefetch((const char*)from + PREFETCH_INT4, _MM_HINT_T0);
      });
      EACH(M, m, {
        const __m512i a = quad(x + m * DEPTH + k * 4);
        EACH(T, t, { dot(sum[m * T + t], v[t], a); });
      });
    }
  }
  EACH(T, t, {
    const __m512 scale = scale4(p, tiles[t], group);
    EACH(M, m, {
      const __m512i q = HIGH ? _mm512_srai_epi32(sum[m * T + t], 4) : sum[m * T + t];
      float* to = sums + (m * T + t) * TILE;
      _mm512_store_ps(to, add_group(p, _mm512_load_ps(to), q, group, row + m, scale));
    });
  });
}

// int4: as vnni8.
template <int M, int T>
static void vnni4(const Product& p, const long* tiles, long row, float* out) {
  static_assert(M * T <= MOST_SUMS, "sums do not fit in registers");
  memset(out, 0, M * T * TILE * sizeof(float));
  for (long b = 0; b < p.blocks; b += 4) {
    group4<M, T, false>(p, tiles, b, row, out);
    group4<M, T, true>(p, tiles, b, row, out);
  }
}

// Unpack a block of int4 (256 inputs) to four blocks of bytes (64 inputs each); codes of the last
// two are 16 times too large.
static inline void unpack4(const uint8_t* packed, uint8_t* bytes) {
  const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)240);
  for (int i = 0; i < BLOCK4; i += 64) {
    const __m512i v = _mm512_load_si512(packed + i);
    _mm512_store_si512(bytes + i, _mm512_and_si512(v, low));
    _mm512_store_si512(bytes + BLOCK4 + i, _mm512_and_si512(v, high));
  }
}

#include "tiles.h"

// Results of M rows and T tiles: out [M][T][16].
template <int M, int T>
static void multiply_rows(const Product& p, const long* tiles, long row, float* out) {
  const int AT_ONCE = TILES_AT_ONCE;
  alignas(64) float part[M * AT_ONCE * TILE];
  for (int t = 0; t < T; t += AT_ONCE) {
    if (p.int4)
      vnni4<M, AT_ONCE>(p, tiles + t, row, part);
    else
      vnni8<M, AT_ONCE>(p, tiles + t, row, part);
    for (int m = 0; m < M; m++)
      memcpy(out + (m * T + t) * TILE, part + m * AT_ONCE * TILE, AT_ONCE * TILE * sizeof(float));
  }
}

// Results of rows [row, row + count) and T tiles, before the rows' scales: out [count][T][16].
// bytes: int4 weights of the tiles, already unpacked: [T][K / 64] blocks; or null.
template <int T>
static void multiply(const Product& p, const long* tiles, const uint8_t* bytes, long row,
                     int count, float* out) {
#ifdef HAVE_AMX
  if (p.amx) {
    for (int t = 0; t < T; t += 2) {
      const uint8_t* unpacked = bytes ? bytes + t * p.blocks * BLOCK8 : nullptr;
      if (p.int4)
        amx4(p, tiles + t, unpacked, row, count, out + t * TILE, T);
      else
        amx8(p, tiles + t, row, count, out + t * TILE, T);
    }
    return;
  }
#endif
  while (count > 0) {
    const int rows = std::min(count, MOST_AT_ONCE);
    switch (rows) {
      case 1: multiply_rows<1, T>(p, tiles, row, out); break;
      case 2: multiply_rows<2, T>(p, tiles, row, out); break;
      case 3: multiply_rows<3, T>(p, tiles, row, out); break;
      case 4: multiply_rows<4, T>(p, tiles, row, out); break;
      case 5: multiply_rows<5, T>(p, tiles, row, out); break;
      case 6: multiply_rows<6, T>(p, tiles, row, out); break;
      case 7: multiply_rows<7, T>(p, tiles, row, out); break;
      default: multiply_rows<8, T>(p, tiles, row, out);
    }
    row += rows;
    count -= rows;
    out += rows * T * TILE;
  }
}

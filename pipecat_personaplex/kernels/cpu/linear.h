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
#include <vector>
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

// int8: results of M rows and T tiles, before the scale of the row: out [M][T][16].
static inline void finish8(const Product& p, long tile, __m512i high, __m512i low, float* out) {
  const __m512i sums = _mm512_loadu_si512(p.sums + tile * TILE);
  const __m512 y = join(_mm512_sub_epi32(high, sums), _mm512_sub_epi32(low, sums));
  _mm512_storeu_ps(out, _mm512_mul_ps(y, _mm512_loadu_ps((const float*)p.scale + tile * TILE)));
}

template <int M, int T>
static void vnni8(const Product& p, const long* tiles, long row, float* out) {
  __m512i acc[M][2][T];
  const uint8_t* w[T];
  for (int t = 0; t < T; t++) w[t] = p.tile(tiles[t]);
  for (int m = 0; m < M; m++)
    for (int t = 0; t < T; t++) acc[m][0][t] = acc[m][1][t] = _mm512_setzero_si512();
  for (long b = 0; b < p.blocks; b++) {
    const uint8_t *high = p.rows(b, 0, row), *low = p.rows(b, 1, row);
    for (int t = 0; t < T; t++)
      for (int line = 0; line < BLOCK8; line += 64)
        _mm_prefetch((const char*)w[t] + PREFETCH_INT8 + line, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int k = 0; k < QUADS; k++) {
      __m512i v[T];
      for (int t = 0; t < T; t++) v[t] = _mm512_load_si512(w[t] + k * 64);
      for (int m = 0; m < M; m++) {
        const __m512i h = quad(high + m * DEPTH + k * 4), l = quad(low + m * DEPTH + k * 4);
        for (int t = 0; t < T; t++) {
          acc[m][0][t] = _mm512_dpbusd_epi32(acc[m][0][t], h, v[t]);
          acc[m][1][t] = _mm512_dpbusd_epi32(acc[m][1][t], l, v[t]);
        }
      }
    }
    for (int t = 0; t < T; t++) w[t] += BLOCK8;
  }
  for (int m = 0; m < M; m++)
    for (int t = 0; t < T; t++)
      finish8(p, tiles[t], acc[m][0][t], acc[m][1][t], out + (m * T + t) * TILE);
}

static inline __m512 scale4(const Product& p, long tile, long group) {
  const uint16_t* s = (const uint16_t*)p.scale + (tile * (p.blocks / 2) + group) * TILE;
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

template <int M, int T>
static void vnni4(const Product& p, const long* tiles, long row, float* out) {
  const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)240);
  const uint8_t* w[T];
  for (int t = 0; t < T; t++) w[t] = p.tile(tiles[t]);
  __m512 sum[M][T];
  for (int m = 0; m < M; m++)
    for (int t = 0; t < T; t++) sum[m][t] = _mm512_setzero_ps();
  for (long b = 0; b < p.blocks; b += 4) {
    __m512i first[M][T], last[M][T];  // of the two groups
    for (int m = 0; m < M; m++)
      for (int t = 0; t < T; t++) first[m][t] = last[m][t] = _mm512_setzero_si512();
    for (int part = 0; part < 2; part++) {  // 64 inputs of each group
      const uint8_t *x0 = p.rows(b + part, 0, row), *x1 = p.rows(b + 2 + part, 0, row);
      for (int t = 0; t < T; t++)
        for (int line = 0; line < 1024; line += 64)
          _mm_prefetch((const char*)w[t] + PREFETCH_INT4 + line, _MM_HINT_T0);
#pragma GCC unroll 4
      for (int k = 0; k < QUADS; k++) {
        __m512i lows[T], highs[T];
        for (int t = 0; t < T; t++) {
          const __m512i v = _mm512_load_si512(w[t] + k * 64);
          lows[t] = _mm512_and_si512(v, low);
          highs[t] = _mm512_and_si512(v, high);
        }
        for (int m = 0; m < M; m++) {
          const __m512i a = quad(x0 + m * DEPTH + k * 4), b = quad(x1 + m * DEPTH + k * 4);
          for (int t = 0; t < T; t++) {
            first[m][t] = _mm512_dpbusd_epi32(first[m][t], lows[t], a);
            last[m][t] = _mm512_dpbusd_epi32(last[m][t], highs[t], b);
          }
        }
      }
      for (int t = 0; t < T; t++) w[t] += BLOCK8;
    }
    const long group = b / 2;
    for (int t = 0; t < T; t++) {
      const __m512 s0 = scale4(p, tiles[t], group), s1 = scale4(p, tiles[t], group + 1);
      for (int m = 0; m < M; m++) {
        sum[m][t] = add_group(p, sum[m][t], first[m][t], group, row + m, s0);
        const __m512i q = _mm512_srai_epi32(last[m][t], 4);
        sum[m][t] = add_group(p, sum[m][t], q, group + 1, row + m, s1);
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int t = 0; t < T; t++) _mm512_storeu_ps(out + (m * T + t) * TILE, sum[m][t]);
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

// Apply a microkernel of M rows to T tiles, `at once` at a time.
template <int M, int T, int AT_ONCE, void (*KERNEL)(const Product&, const long*, long, float*)>
static void apply(const Product& p, const long* tiles, long row, float* out) {
  alignas(64) float part[M * AT_ONCE * TILE];
  for (int t = 0; t < T; t += AT_ONCE) {
    KERNEL(p, tiles + t, row, part);
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
    const int rows = count >= 4 ? 4 : count >= 2 ? 2 : 1;
    if (p.int4) {
      if (rows == 4) apply<4, T, 2, vnni4<4, 2>>(p, tiles, row, out);
      if (rows == 2) apply<2, T, 2, vnni4<2, 2>>(p, tiles, row, out);
      if (rows == 1) apply<1, T, 4, vnni4<1, 4>>(p, tiles, row, out);
    } else {
      if (rows == 4) apply<4, T, 2, vnni8<4, 2>>(p, tiles, row, out);
      if (rows == 2) apply<2, T, 4, vnni8<2, 4>>(p, tiles, row, out);
      if (rows == 1) apply<1, T, 4, vnni8<1, 4>>(p, tiles, row, out);
    }
    row += rows;
    count -= rows;
    out += rows * T * TILE;
  }
}

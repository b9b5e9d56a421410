// Products of a few float rows with a bfloat16 weight [N, K], for output heads.
//
// The weight is read once from memory and expanded in registers; all arithmetic is in float32. The
// order of additions in a result is fixed, so a row does not depend on the other rows.
#include <omp.h>
#include <algorithm>
#include <vector>
#include "vectors.h"

static const int OUTPUTS = 4;  // computed together: as many streams from memory
static const int MOST_ROWS = 4;  // of one call of dot; its sums fill half of the registers
static const int PAIRS = 32;   // numbers of one vector of bfloat16

// rows: [M][K], of each 32 numbers first the even ones. weights: OUTPUTS rows.
template <int M>
static void dot(const uint16_t* const* weights, const float* x, long inputs, float* y, long stride,
                int outputs) {
  __m512 sum[OUTPUTS][M];
  for (int n = 0; n < OUTPUTS; n++)
    for (int m = 0; m < M; m++) sum[n][m] = _mm512_setzero_ps();
  // The outputs that come next are requested ahead.
  for (long k = 0; k < inputs; k += PAIRS)
    for (int n = 0; n < OUTPUTS; n++) {
      _mm_prefetch((const char*)(weights[n] + OUTPUTS * inputs + k), _MM_HINT_T0);
      const __m512i pairs = _mm512_loadu_si512(weights[n] + k);
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      const __m512 odd =
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
      for (int m = 0; m < M; m++) {
        const float* at = x + m * inputs + k;
        sum[n][m] = _mm512_fmadd_ps(even, _mm512_loadu_ps(at), sum[n][m]);
        sum[n][m] = _mm512_fmadd_ps(odd, _mm512_loadu_ps(at + LANES), sum[n][m]);
      }
    }
  for (int n = 0; n < outputs; n++)
    for (int m = 0; m < M; m++) y[m * stride + n] = _mm512_reduce_add_ps(sum[n][m]);
}

// y [rows, outputs] = x [rows, inputs] @ weight.T; inputs must be a multiple of 32.
extern "C" void personaplex_bfloat16(const uint16_t* weight, const float* x, float* y, long rows,
                                     long inputs, long outputs, long threads) {
  static thread_local std::vector<float> arranged;
  arranged.resize(rows * inputs);
  float* to = arranged.data();
  for (long i = 0; i < rows * inputs; i++)
    to[i / PAIRS * PAIRS + i % 2 * LANES + i % PAIRS / 2] = x[i];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long n = 0; n < outputs; n += OUTPUTS) {
    const int count = std::min((long)OUTPUTS, outputs - n);
    const uint16_t* streams[OUTPUTS];  // the last output again where there are fewer
    for (int i = 0; i < OUTPUTS; i++) streams[i] = weight + (n + std::min(i, count - 1)) * inputs;
    for (long row = 0; row < rows; row += MOST_ROWS) {
      const float* from = to + row * inputs;
      float* out = y + row * outputs + n;
      switch (std::min((long)MOST_ROWS, rows - row)) {
        case 1: dot<1>(streams, from, inputs, out, outputs, count); break;
        case 2: dot<2>(streams, from, inputs, out, outputs, count); break;
        case 3: dot<3>(streams, from, inputs, out, outputs, count); break;
        default: dot<MOST_ROWS>(streams, from, inputs, out, outputs, count);
      }
    }
  }
}

// Small helpers of the CPU kernels: 16 floats a vector, AVX-512.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <math.h>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__) || !defined(__AVX512VNNI__)
#error "the kernels need AVX-512 with VNNI"
#endif

static const int LANES = 16;
// Bytes by which each stream is requested ahead of its use.
static const int PREFETCH_INT8 = 3072, PREFETCH_INT4 = 3072, PREFETCH_FLOAT = 2048;
static const int PREFETCH_SCALE = 256;

static inline __m512 splat(float x) { return _mm512_set1_ps(x); }

// e**x of each lane, relative error below 2e-7; 0 below -87.
static inline __m512 exp16(__m512 x) {
  const __m512 low = splat(-87.0f);
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
  x = _mm512_min_ps(splat(88.0f), x);  // in this order a NaN stays
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, splat(1.44269504f)), 0);
  // x - n ln 2 in two parts, so that the difference is exact enough.
  __m512 r = _mm512_fnmadd_ps(n, splat(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, splat(-2.12194440e-4f), r);
  __m512 y = splat(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, splat(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, splat(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, splat(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, splat(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, splat(5.0000001201e-1f));
  y = _mm512_fmadd_ps(_mm512_mul_ps(y, r), r, _mm512_add_ps(r, splat(1.0f)));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), tiny, _mm512_setzero_ps());
}

// x / (1 + e**-x) of each lane. A NaN stays a NaN.
static inline __m512 silu16(__m512 x) {
  const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), x));
  return _mm512_div_ps(x, _mm512_add_ps(splat(1.0f), e));
}

static inline __mmask16 first_lanes(long count) {
  return count >= LANES ? (__mmask16)0xFFFF : (__mmask16)((1u << count) - 1);
}

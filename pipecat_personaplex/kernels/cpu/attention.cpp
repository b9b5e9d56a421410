// Attention of one new position of each session to the filled part of its ring.
//
// Each task is one head of one session: rotate and store the new key and value, then read the ring
// once, block by block, with a running maximum. All arithmetic is in float32; 16-bit and 8-bit
// numbers are expanded in registers. A task's result does not depend on the other tasks.
#include <omp.h>
#include "vectors.h"

static const int BLOCK = 64;  // positions between two updates of the running maximum
static const int MOST_DIM = 256;
static const float E4M3_MAX = 448.0f, SMALLEST_AMAX = 1e-30f;

// Each format loads 32 stored numbers as two vectors, in an order of its own; arrange and restore
// bring 32 floats into this order and back.
struct Float32 {
  typedef float Type;
  static const bool SCALED = false;
  static void load(const float* p, __m512& a, __m512& b) {
    a = _mm512_loadu_ps(p);
    b = _mm512_loadu_ps(p + LANES);
  }
  static int order(int i) { return i; }
  static void store(const float* x, int dim, float* to, float*) { memcpy(to, x, dim * 4); }
};

struct BFloat16 {
  typedef uint16_t Type;
  static const bool SCALED = false;
  static void load(const uint16_t* p, __m512& a, __m512& b) {
    const __m512i pairs = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
  }
  static int order(int i) { return i % 2 * LANES + i / 2; }  // even numbers first
  static void store(const float* x, int dim, uint16_t* to, float*) {
    for (int i = 0; i < dim; i++) {
      uint32_t bits;
      memcpy(&bits, x + i, 4);
      // To nearest, ties to even. A NaN becomes the quiet NaN.
      to[i] = x[i] == x[i] ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : 0x7FC0;
    }
  }
};

struct E4M3 {
  typedef uint8_t Type;
  static const bool SCALED = true;
  // The bits of a half float that is 256 times smaller; the caller multiplies.
  static void load(const uint8_t* p, __m512& a, __m512& b) {
    const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
    const __m512i half =
        _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16((short)0xBF80));
    a = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
  }
  static int order(int i) { return i; }
  // As quantization.kv.quantize: one scale for the vector.
  static void store(const float* x, int dim, uint8_t* to, float* scale_to) {
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < dim; i += LANES)
      most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + i),
                                                     _mm512_set1_epi32(0x7FFFFFFF)));
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float amax;
    memcpy(&amax, &bits, 4);
    const float scale = (amax < SMALLEST_AMAX ? SMALLEST_AMAX : amax) / E4M3_MAX;
    *scale_to = scale;
    for (int i = 0; i < dim; i += LANES) {
      const __m512 number = _mm512_loadu_ps(x + i);
      __m512 y = _mm512_abs_ps(_mm512_div_ps(number, splat(scale)));
      y = _mm512_min_ps(y, splat(E4M3_MAX));
      // Numbers of one exponent are 2**(exponent - 3) apart; subnormal ones as the smallest.
      __m512i e = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(y), 23),
                                   _mm512_set1_epi32(127));
      e = _mm512_max_epi32(e, _mm512_set1_epi32(-6));
      const __m512 per_step = _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(130), e), 23));
      const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(y, per_step));
      const __m512i code = _mm512_add_epi32(
          _mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(6)), 3), steps);
      const __m512i sign = _mm512_and_si512(
          _mm512_srli_epi32(_mm512_castps_si512(number), 24), _mm512_set1_epi32(0x80));
      _mm_storeu_si128((__m128i*)(to + i), _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
    }
  }
};

// Sums of 16 vectors: lane i is the sum of v[i].
static inline __m512 sums(const __m512* v) {
  __m512 two[8], four[4];
  for (int i = 0; i < 8; i++)
    two[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                           _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; i++) {
    const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                                   _mm512_shuffle_f32x4(four[0], four[1], 0xDD));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                                    _mm512_shuffle_f32x4(four[2], four[3], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                       _mm512_shuffle_f32x4(low, high, 0xDD));
}

// Rotate interleaved pairs by dim / 2 angles; without angles, copy.
static void rotate(const float* x, const float* cos, const float* sin, int dim, float* to) {
  if (!cos) {
    memcpy(to, x, dim * 4);
    return;
  }
  for (int i = 0; i < dim / 2; i++) {
    to[2 * i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
    to[2 * i + 1] = x[2 * i] * sin[i] + x[2 * i + 1] * cos[i];
  }
}

// q: arranged and multiplied by the softmax scale. keys, values: [filled][D].
template <class F, int D>
static void attend(const float* q, const typename F::Type* keys, const typename F::Type* values,
                   const float* key_scales, const float* value_scales, long filled, float* out) {
  const int N = D / LANES;
  __m512 query[N], sum[N];
  for (int i = 0; i < N; i++) {
    query[i] = _mm512_loadu_ps(q + i * LANES);
    sum[i] = _mm512_setzero_ps();
  }
  float most = -INFINITY;
  __m512 total = _mm512_setzero_ps();
  for (long start = 0; start < filled; start += BLOCK) {
    const long count = filled - start < BLOCK ? filled - start : BLOCK;
    alignas(64) float weights[BLOCK];
    __m512 block_most = splat(-INFINITY);
    for (long group = 0; group < count; group += LANES) {
      __m512 dots[LANES];
      for (int i = 0; i < LANES; i++) {
        // Beyond the end the last position is read again; its score is masked.
        const long position = group + i < count ? group + i : count - 1;
        const typename F::Type* key = keys + (start + position) * D;
        for (int ahead = 0; ahead < D * (int)sizeof(*key); ahead += 64)
          _mm_prefetch((const char*)key + PREFETCH_FLOAT + ahead, _MM_HINT_T0);
        __m512 a, b, even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int j = 0; j < N; j += 2) {
          F::load(key + j * LANES, a, b);
          even = _mm512_fmadd_ps(a, query[j], even);
          odd = _mm512_fmadd_ps(b, query[j + 1], odd);
        }
        dots[i] = _mm512_add_ps(even, odd);
      }
      const __mmask16 valid = first_lanes(count - group);
      __m512 score = sums(dots);
      if (F::SCALED) {
        const __m512 scale = _mm512_maskz_loadu_ps(valid, key_scales + start + group);
        score = _mm512_mul_ps(score, _mm512_mul_ps(scale, splat(256.0f)));
      }
      score = _mm512_mask_mov_ps(splat(-INFINITY), valid, score);
      block_most = _mm512_max_ps(block_most, score);
      _mm512_store_ps(weights + group, score);
    }
    const float larger = fmaxf(most, _mm512_reduce_max_ps(block_most));
    if (larger > most) {
      const __m512 correction = exp16(splat(most - larger));
      total = _mm512_mul_ps(total, correction);
      for (int i = 0; i < N; i++) sum[i] = _mm512_mul_ps(sum[i], correction);
      most = larger;
    }
    for (long group = 0; group < count; group += LANES) {
      const __m512 weight = exp16(_mm512_sub_ps(_mm512_load_ps(weights + group), splat(most)));
      total = _mm512_add_ps(total, weight);
      if (F::SCALED) {
        const __mmask16 valid = first_lanes(count - group);
        const __m512 scale = _mm512_maskz_loadu_ps(valid, value_scales + start + group);
        _mm512_store_ps(weights + group,
                        _mm512_mul_ps(weight, _mm512_mul_ps(scale, splat(256.0f))));
      } else {
        _mm512_store_ps(weights + group, weight);
      }
    }
    for (long i = 0; i < count; i++) {
      const typename F::Type* value = values + (start + i) * D;
      for (int ahead = 0; ahead < D * (int)sizeof(*value); ahead += 64)
        _mm_prefetch((const char*)value + PREFETCH_FLOAT + ahead, _MM_HINT_T0);
      const __m512 weight = splat(weights[i]);
      __m512 a, b;
      for (int j = 0; j < N; j += 2) {
        F::load(value + j * LANES, a, b);
        sum[j] = _mm512_fmadd_ps(weight, a, sum[j]);
        sum[j + 1] = _mm512_fmadd_ps(weight, b, sum[j + 1]);
      }
    }
  }
  const __m512 inverse = splat(1.0f / _mm512_reduce_add_ps(total));
  for (int i = 0; i < N; i++) _mm512_storeu_ps(out + i * LANES, _mm512_mul_ps(sum[i], inverse));
}

struct Rings {
  const float *q, *k, *v;           // of the new position
  long row_stride, head_stride;     // of all three
  const float *cos, *sin;           // [batch, dim / 2], or null
  void *keys, *values;              // [slots, heads, window, dim]
  float *key_scales, *value_scales; // [slots, heads, window], or null
  const int64_t *slots, *indices, *filled;  // [batch]
  long batch, heads, window;
  float* out;                       // [batch, heads, dim]
};

template <class F, int D>
static void attend_all(const Rings& r, long threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
  for (long row = 0; row < r.batch; row++)
    for (long head = 0; head < r.heads; head++) {
      const long offset = row * r.row_stride + head * r.head_stride;
      const float* cos = r.cos ? r.cos + row * (D / 2) : nullptr;
      const float* sin = r.sin ? r.sin + row * (D / 2) : nullptr;
      const long ring = (r.slots[row] * r.heads + head) * r.window, index = r.indices[row];
      typename F::Type* keys = (typename F::Type*)r.keys + ring * D;
      typename F::Type* values = (typename F::Type*)r.values + ring * D;
      float* key_scales = F::SCALED ? r.key_scales + ring : nullptr;
      float* value_scales = F::SCALED ? r.value_scales + ring : nullptr;
      float rotated[MOST_DIM], arranged[MOST_DIM], result[MOST_DIM];
      rotate(r.k + offset, cos, sin, D, rotated);
      F::store(rotated, D, keys + index * D, F::SCALED ? key_scales + index : nullptr);
      F::store(r.v + offset, D, values + index * D, F::SCALED ? value_scales + index : nullptr);
      rotate(r.q + offset, cos, sin, D, rotated);
      const float scale = 1.0f / sqrtf((float)D);
      for (int i = 0; i < D; i++) arranged[i / 32 * 32 + F::order(i % 32)] = rotated[i] * scale;
      attend<F, D>(arranged, keys, values, key_scales, value_scales, r.filled[row], result);
      float* to = r.out + (row * r.heads + head) * D;
      for (int i = 0; i < D; i++) to[i] = result[i / 32 * 32 + F::order(i % 32)];
    }
}

template <class F>
static int attend_dim(const Rings& r, long dim, long threads) {
  switch (dim) {
    case 32: attend_all<F, 32>(r, threads); return 0;
    case 64: attend_all<F, 64>(r, threads); return 0;
    case 96: attend_all<F, 96>(r, threads); return 0;
    case 128: attend_all<F, 128>(r, threads); return 0;
    case 256: attend_all<F, 256>(r, threads); return 0;
  }
  return 1;
}

// format: 0 float32, 1 bfloat16, 2 e4m3. Returns 0, or 1 for a head dimension without a kernel.
extern "C" int personaplex_attend(int format, long dim, const float* q, const float* k,
                                  const float* v, long row_stride, long head_stride,
                                  const float* cos, const float* sin, void* keys, void* values,
                                  float* key_scales, float* value_scales, const int64_t* slots,
                                  const int64_t* indices, const int64_t* filled, long batch,
                                  long heads, long window, float* out, long threads) {
  const Rings r = {q, k, v, row_stride, head_stride, cos, sin, keys, values, key_scales,
                   value_scales, slots, indices, filled, batch, heads, window, out};
  if (format == 0) return attend_dim<Float32>(r, dim, threads);
  if (format == 1) return attend_dim<BFloat16>(r, dim, threads);
  return attend_dim<E4M3>(r, dim, threads);
}

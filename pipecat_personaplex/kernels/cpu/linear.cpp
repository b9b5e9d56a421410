// Entry points of the products: quantise rows, multiply, and apply scales, gate and residual.
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "linear.h"

// Grows, never shrinks; one for each calling thread.
struct Buffer {
  uint8_t* data = nullptr;
  size_t size = 0;
  ~Buffer() { free(data); }
  uint8_t* get(size_t bytes) {
    if (bytes > size) {
      free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = (uint8_t*)aligned_alloc(64, size);
      if (!data) abort();
    }
    return data;
  }
};

static bool have_amx() {
#ifdef HAVE_AMX
  static const bool granted = request_amx();
  return granted;
#else
  return false;
#endif
}

struct Rows {
  const float* x;      // [rows, inputs]
  const float* alpha;  // weights of an RMS norm, or null
  float eps;
  long inputs, padded, blocks;
  int int4;
  uint8_t* act;
  int32_t* group_sums;
  float* group_scales;
  float* scales;  // [rows]; int4: all 1
};

// Scale that maps the largest magnitude of numbers [from, to) to most; NaN if one is not finite.
template <class Value>
static float scale_of(const Value& value, long from, long to, float most) {
  // Compared as integers, infinities and NaNs are the largest numbers and are not lost.
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  for (long i = from; i < to; i += LANES)
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(value(i)), magnitude));
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  float amax;
  memcpy(&amax, &bits, 4);
  return isfinite(amax) ? fmaxf(amax, 1e-30f) / most : NAN;
}

static inline __m512i round_to(__m512 x, int most) {
  const __m512i q = _mm512_cvtps_epi32(x);
  return _mm512_min_epi32(_mm512_max_epi32(q, _mm512_set1_epi32(-most)), _mm512_set1_epi32(most));
}

// Norm one row and quantise it.
static void quantize_row(const Rows& r, long row) {
  const float* x = r.x + row * r.inputs;
  const long width = r.blocks * DEPTH;
  float factor = 1.0f;
  if (r.alpha) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < r.inputs; i += LANES) {
      const __m512 v = _mm512_maskz_loadu_ps(first_lanes(r.inputs - i), x + i);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    factor = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / r.inputs + r.eps);
  }
  auto value = [&](long i) {
    const __mmask16 lanes = i < r.inputs ? first_lanes(r.inputs - i) : 0;
    __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
    if (r.alpha)
      v = _mm512_mul_ps(_mm512_mul_ps(v, splat(factor)), _mm512_maskz_loadu_ps(lanes, r.alpha + i));
    return v;
  };
  if (r.int4) {
    r.scales[row] = 1.0f;
    for (long i = 0; i < width; i += GROUP) {
      const long at = i / GROUP * r.padded + row;
      const float scale = scale_of(value, i, i + GROUP, 127.0f);
      r.group_scales[at] = scale;
      const __m512 inverse = splat(isfinite(scale) ? 1.0f / scale : 0.0f);
      __m512i sum = _mm512_setzero_si512();
      for (long j = i; j < i + GROUP; j += LANES) {
        const __m512i q = round_to(_mm512_mul_ps(value(j), inverse), 127);
        sum = _mm512_add_epi32(sum, q);
        uint8_t* to = r.act + (j / DEPTH * r.padded + row) * DEPTH + j % DEPTH;
        _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(q));
      }
      r.group_sums[at] = 8 * _mm512_reduce_add_epi32(sum);
    }
    return;
  }
  const float scale = scale_of(value, 0, r.inputs, Q_MAX);
  r.scales[row] = scale;
  const __m512 inverse = splat(isfinite(scale) ? 1.0f / scale : 0.0f);
  const __m512i zero_point = _mm512_set1_epi32(128);
  for (long i = 0; i < width; i += LANES) {
    const __m512i q = round_to(_mm512_mul_ps(value(i), inverse), (int)Q_MAX);
    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(q, 24), 24);
    const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(q, low), 8);
    uint8_t* to = r.act + ((i / DEPTH * 2) * r.padded + row) * DEPTH + i % DEPTH;
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_add_epi32(high, zero_point)));
    _mm_storeu_si128((__m128i*)(to + r.padded * DEPTH),
                     _mm512_cvtepi32_epi8(_mm512_add_epi32(low, zero_point)));
  }
}

struct Output {
  float* y;               // [rows, width]
  const float* residual;  // the same shape, or null
  const float* scales;    // [rows]
  long width;
};

// Store 16 results of one row.
static inline void store(const Output& o, long row, long column, __m512 y) {
  const __mmask16 lanes = first_lanes(o.width - column);
  float* to = o.y + row * o.width + column;
  if (o.residual)
    y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, o.residual + row * o.width + column));
  _mm512_mask_storeu_ps(to, lanes, y);
}

// Tiles of a unit of work: T neighbours, or T / 2 of the gate and the T / 2 that it gates.
template <int T>
static void run_unit(const Product& p, const Output& o, const long* tiles, const uint8_t* bytes,
                     long row, int count, bool gate) {
  alignas(64) float out[MOST_ROWS * T * TILE];
  multiply<T>(p, tiles, bytes, row, count, out);
  for (int m = 0; m < count; m++) {
    const __m512 scale = splat(o.scales[row + m]);
    const float* from = out + m * T * TILE;
    if (gate) {
      for (int t = 0; t < T; t += 2) {
        const __m512 g = _mm512_mul_ps(_mm512_load_ps(from + t * TILE), scale);
        const __m512 up = _mm512_mul_ps(_mm512_load_ps(from + (t + 1) * TILE), scale);
        store(o, row + m, tiles[t] * TILE, _mm512_mul_ps(silu16(g), up));
      }
    } else {
      for (int t = 0; t < T; t++)
        if (tiles[t] * TILE < o.width)
          store(o, row + m, tiles[t] * TILE, _mm512_mul_ps(_mm512_load_ps(from + t * TILE), scale));
    }
  }
}

extern "C" {

// 1 if products use AMX.
int personaplex_amx() { return have_amx(); }

// Ask for pages of 2 MB, with which memory is read up to a third faster. Call before the first write.
void personaplex_huge_pages(uint8_t* memory, long bytes) {
  const uintptr_t page = 2 << 20, begin = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
  if (end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
}

// Rearrange a weight [rows, row_bytes] to tiles of 16 outputs; a tile is [padded_bytes / 4][16][4].
// Zeros fill up what is missing. sums, if not null: 128 times the sum of each output's signed bytes.
void personaplex_pack(const uint8_t* from, uint8_t* to, int32_t* sums, long rows, long row_bytes,
                      long padded_bytes, long threads) {
  const __m512i row = _mm512_mullo_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
      _mm512_set1_epi32(row_bytes));
  const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi8(1);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long first = 0; first < rows; first += TILE) {
    const __mmask16 lanes = first_lanes(rows - first);
    uint8_t* tile = to + first * padded_bytes;
    __m512i sum = zero;
    for (long i = 0; i < padded_bytes; i += 4) {
      const __m512i quads =
          i < row_bytes
              ? _mm512_mask_i32gather_epi32(zero, lanes, row, from + first * row_bytes + i, 1)
              : zero;
      sum = _mm512_dpbusd_epi32(sum, one, quads);
      _mm512_storeu_si512(tile + i * TILE, quads);
    }
    if (sums) _mm512_storeu_si512(sums + first, _mm512_slli_epi32(sum, 7));
  }
}

// y [rows, N] or with gate [rows, N / 2] = norm(x) [rows, inputs] @ weight.T, gated, + residual.
// N = 16 tiles; y may be narrower (width). With gate, the tiles of gate and up are two halves.
void personaplex_linear(int int4, const uint8_t* weight, const void* scale, const int32_t* sums,
                        long tiles, long blocks, const float* x, const float* alpha, float eps,
                        const float* residual, float* y, long rows, long inputs, long width,
                        int gate, long threads) {
  static thread_local Buffer shared;
#ifdef HAVE_AMX
  const bool amx = rows >= (int4 ? AMX_ROWS_INT4 : AMX_ROWS_INT8) && have_amx();
#else
  const bool amx = false;
#endif
  const long padded = amx ? (rows + 15) / 16 * 16 : rows;
  const size_t act_bytes = (size_t)blocks * (int4 ? 1 : 2) * padded * DEPTH;
  const size_t group_bytes = (size_t)(int4 ? blocks / 2 : 0) * padded * 4;
  uint8_t* memory = shared.get(act_bytes + 2 * group_bytes + rows * 4);
  int32_t* group_sums = (int32_t*)(memory + act_bytes);
  float* group_scales = (float*)(memory + act_bytes + group_bytes);
  const Rows r = {x, alpha, eps, inputs, padded, blocks, int4, memory, group_sums, group_scales,
                  (float*)(memory + act_bytes + 2 * group_bytes)};
  const Product p = {int4, weight, scale, sums, blocks, r.act, group_sums, group_scales, padded,
                     amx};
  const Output o = {y, residual, r.scales, width};
  const long half = tiles / 2;
  // A unit is 4 tiles. The last unit repeats its last tiles if there are fewer.
  const long pairs = gate ? half : (tiles + 1) / 2, units = (pairs + 1) / 2;
  auto unit_tiles = [&](long unit, long* four) {
    for (int i = 0; i < 2; i++) {
      const long pair = std::min(unit * 2 + i, pairs - 1);
      four[2 * i] = gate ? pair : pair * 2;
      four[2 * i + 1] = gate ? pair + half : std::min(pair * 2 + 1, tiles - 1);
    }
  };
  const bool many = rows > MOST_ROWS;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) quantize_row(r, row);
#ifdef HAVE_AMX
    if (amx) configure_tiles(rows < 16 ? rows : 16);
#endif
    if (!many) {
#pragma omp for schedule(static) nowait
      for (long unit = 0; unit < units; unit++) {
        long four[4];
        unit_tiles(unit, four);
        run_unit<4>(p, o, four, nullptr, 0, rows, gate);
      }
    } else {
      // Many rows: a few units stay in the cache, unpacked, while all rows pass by them.
      static thread_local Buffer unpacked;
      const long group = std::max(1L, SUPERBLOCK / (4 * TILE * blocks * DEPTH));
#pragma omp for schedule(dynamic) nowait
      for (long first = 0; first < units; first += group) {
        const long last = std::min(units, first + group);
        uint8_t* bytes = nullptr;
        const size_t unit_bytes = (size_t)4 * blocks * BLOCK8;
        if (int4 && amx) {
          bytes = unpacked.get(group * unit_bytes);
          for (long unit = first; unit < last; unit++) {
            long four[4];
            unit_tiles(unit, four);
            for (int t = 0; t < 4; t++)
              for (long b = 0; b < blocks; b += 4)
                unpack4(p.tile(four[t]) + b / 4 * BLOCK4,
                        bytes + (unit - first) * unit_bytes + (t * blocks + b) * BLOCK8);
          }
        }
        for (long row = 0; row < rows; row += MOST_ROWS)
          for (long unit = first; unit < last; unit++) {
            long four[4];
            unit_tiles(unit, four);
            run_unit<4>(p, o, four, bytes ? bytes + (unit - first) * unit_bytes : nullptr, row,
                        std::min((long)MOST_ROWS, rows - row), gate);
          }
      }
    }
#ifdef HAVE_AMX
    if (amx) _tile_release();
#endif
  }
}
}

// The microkernels of linear.h with AMX tiles, where the compiler and the processor have them.
#pragma once
#if defined(__AMX_INT8__) && defined(__AMX_TILE__)
#define HAVE_AMX
#include <sys/syscall.h>
#include <unistd.h>

// Fewer rows are faster with vpdpbusd.
static const int AMX_ROWS_INT8 = 3, AMX_ROWS_INT4 = 5;

struct TileConfig {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

// Tiles 0 to 3: results, [weight tile][half or group]. 4, 5: activations. 6, 7: weights.
static inline void configure_tiles(int rows) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = 64;
    config.rows[i] = i < 6 ? rows : 16;
  }
  _tile_loadconfig(&config);
}

static bool request_amx() {
  const int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static void amx8(const Product& p, const long* tiles, long row, int count, float* out, int width) {
  alignas(64) int32_t c[4][16][16];
  const uint8_t *w0 = p.tile(tiles[0]), *w1 = p.tile(tiles[1]);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long b = 0; b < p.blocks; b++) {
    for (int line = 0; line < BLOCK8; line += 64) {
      _mm_prefetch((const char*)w0 + PREFETCH_INT8 + line, _MM_HINT_T0);
      _mm_prefetch((const char*)w1 + PREFETCH_INT8 + line, _MM_HINT_T0);
    }
    _tile_loadd(4, p.rows(b, 0, row), DEPTH);
    _tile_loadd(5, p.rows(b, 1, row), DEPTH);
    _tile_loadd(6, w0, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
    _tile_loadd(7, w1, 64);
    _tile_dpbusd(2, 4, 7);
    _tile_dpbusd(3, 5, 7);
    w0 += BLOCK8;
    w1 += BLOCK8;
  }
  _tile_stored(0, c[0], 64);
  _tile_stored(1, c[1], 64);
  _tile_stored(2, c[2], 64);
  _tile_stored(3, c[3], 64);
  for (int m = 0; m < count; m++)
    for (int t = 0; t < 2; t++)
      finish8(p, tiles[t], _mm512_load_si512(c[2 * t][m]), _mm512_load_si512(c[2 * t + 1][m]),
              out + (m * width + t) * TILE);
}

static void amx4(const Product& p, const long* tiles, const uint8_t* unpacked, long row, int count,
                 float* out, int width) {
  alignas(64) int32_t c[4][16][16];
  alignas(64) float sum[2][16][16];
  alignas(64) uint8_t buffer[2][4 * BLOCK8];
  const uint8_t* packed[2] = {p.tile(tiles[0]), p.tile(tiles[1])};
  memset(sum, 0, sizeof sum);
  for (long b = 0; b < p.blocks; b += 4) {
    const uint8_t* w[2];
    for (int t = 0; t < 2; t++) {
      if (unpacked) {
        w[t] = unpacked + (t * p.blocks + b) * BLOCK8;
      } else {
        for (int line = 0; line < BLOCK4; line += 64)
          _mm_prefetch((const char*)packed[t] + PREFETCH_INT4 + line, _MM_HINT_T0);
        unpack4(packed[t], buffer[t]);
        packed[t] += BLOCK4;
        w[t] = buffer[t];
      }
    }
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int part = 0; part < 2; part++) {
      _tile_loadd(4, p.rows(b + part, 0, row), DEPTH);
      _tile_loadd(6, w[0] + part * BLOCK8, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, w[1] + part * BLOCK8, 64);
      _tile_dpbsud(2, 4, 7);
      _tile_loadd(5, p.rows(b + 2 + part, 0, row), DEPTH);
      _tile_loadd(6, w[0] + (2 + part) * BLOCK8, 64);
      _tile_dpbsud(1, 5, 6);
      _tile_loadd(7, w[1] + (2 + part) * BLOCK8, 64);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    const long group = b / 2;
    for (int t = 0; t < 2; t++) {
      const __m512 s0 = scale4(p, tiles[t], group), s1 = scale4(p, tiles[t], group + 1);
      for (int m = 0; m < count; m++) {
        __m512 y = _mm512_load_ps(sum[t][m]);
        y = add_group(p, y, _mm512_load_si512(c[2 * t][m]), group, row + m, s0);
        const __m512i q = _mm512_srai_epi32(_mm512_load_si512(c[2 * t + 1][m]), 4);
        _mm512_store_ps(sum[t][m], add_group(p, y, q, group + 1, row + m, s1));
      }
    }
  }
  for (int t = 0; t < 2; t++)
    for (int m = 0; m < count; m++)
      _mm512_storeu_ps(out + (m * width + t) * TILE, _mm512_load_ps(sum[t][m]));
}
#endif

// What kernels on AMX's tiles share. Compiled with AVX-512 and AMX, so only their files may include it.
#pragma once
#include <immintrin.h>

#include "tables.h"

namespace {

using rcnn::bfloat16;

constexpr int64_t TILE = 1024, LINE = 64;  // bytes: of a tile, of its rows

// GCC does not know that tiles are loaded from memory, nor how much of it holds their sizes.
inline void finish_writing(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// Asks for a line of memory: into the second cache, or the first. GCC drops calls of functions that do nothing else by
// _mm_prefetch.
inline void fetch(const char* line) { asm volatile("prefetcht1 (%0)" ::"r"(line)); }
inline void fetch_near(const char* line) { asm volatile("prefetcht0 (%0)" ::"r"(line)); }

// All eight tiles have 16 rows of 64 bytes. oneDNN's kernels have sizes of their own: _tile_release() comes after the work.
inline void configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t line[16] = {};
    uint8_t rows[16] = {};
  } sizes;
  for (int i = 0; i < 8; ++i) sizes.line[i] = LINE, sizes.rows[i] = 16;
  finish_writing(&sizes);
  _tile_loadconfig(&sizes);
}

// Tiles 0 to 3 hold sums, one after another in memory.
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void load_sums(const char* from) {
  _tile_loadd(0, from, LINE);
  _tile_loadd(1, from + TILE, LINE);
  _tile_loadd(2, from + 2 * TILE, LINE);
  _tile_loadd(3, from + 3 * TILE, LINE);
}

inline void store_sums(char* to) {
  _tile_stored(0, to, LINE);
  _tile_stored(1, to + TILE, LINE);
  _tile_stored(2, to + 2 * TILE, LINE);
  _tile_stored(3, to + 3 * TILE, LINE);
}

inline void exchange_sums(char* to, const char* from) {
  _tile_stored(0, to, LINE);
  _tile_loadd(0, from, LINE);
  _tile_stored(1, to + TILE, LINE);
  _tile_loadd(1, from + TILE, LINE);
  _tile_stored(2, to + 2 * TILE, LINE);
  _tile_loadd(2, from + 2 * TILE, LINE);
  _tile_stored(3, to + 3 * TILE, LINE);
  _tile_loadd(3, from + 3 * TILE, LINE);
}

// Adds the products of the tiles 4 and 5 with 6 and 7, and loads the factors that come next, second halves at a distance.
inline void multiply_and_load(const char* first, int64_t first_half, const char* second, int64_t second_half) {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(4, first, LINE);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(6, second, LINE);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(7, second + second_half, LINE);
  _tile_loadd(5, first + first_half, LINE);
}

inline void load_factors(const char* first, int64_t first_half, const char* second, int64_t second_half) {
  _tile_loadd(4, first, LINE);
  _tile_loadd(6, second, LINE);
  _tile_loadd(7, second + second_half, LINE);
  _tile_loadd(5, first + first_half, LINE);
}

// 32 values of a row in the order in which unpacking two rows leaves 16 pairs of them in order, and 16 more.
inline __m512i read(const void* row) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_loadu_si512(row));
}

inline void write(char* to, __m512i values) { _mm512_store_si512(to, values); }

// Rows of 16 pairs become columns.
inline void transpose(__m512i* rows) {
  __m512i half[16];
  for (int i = 0; i < 16; i += 2) {
    half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {
      rows[i + 2 * k] = _mm512_unpacklo_epi64(half[i + k], half[i + k + 2]);
      rows[i + 2 * k + 1] = _mm512_unpackhi_epi64(half[i + k], half[i + k + 2]);
    }
  for (int c = 0; c < 4; ++c) {  // rows[4 q + c] holds of rows 4 q .. 4 q + 3 the columns c, c + 4, c + 8, c + 12
    const __m512i low = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xee);
    const __m512i next_low = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x44);
    const __m512i next_high = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xee);
    half[c] = _mm512_shuffle_i32x4(low, next_low, 0x88);
    half[4 + c] = _mm512_shuffle_i32x4(low, next_low, 0xdd);
    half[8 + c] = _mm512_shuffle_i32x4(high, next_high, 0x88);
    half[12 + c] = _mm512_shuffle_i32x4(high, next_high, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = half[i];
}

}  // namespace

// One register of floats, as wide as the instruction set this file is compiled for (GCC and Clang vector extensions).
#pragma once
#include <cstdint>
#include <cstring>

#include "tables.h"

namespace {

using rcnn::bfloat16;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t UintVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));
typedef int16_t ShortVec __attribute__((vector_size(LANES * 2)));

inline Vec splat(float x) { return Vec{} + x; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec load(const bfloat16* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, UintVec) << 16);
}

// Round to nearest even; a NaN stays a NaN.
inline HalfVec rounded_to_half(Vec v) {
  UintVec bits = (UintVec)v;
  UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  UintVec quiet = (bits >> 16) | 0x40u;
  UintVec chosen = v == v ? rounded : quiet;
  return __builtin_convertvector(chosen, HalfVec);
}

inline void store(bfloat16* p, Vec v) {
  const HalfVec half = rounded_to_half(v);
  std::memcpy(p, &half, sizeof half);
}

// Of what is not read soon: past the caches, so that its lines are not fetched from memory before they are written.
// On p's multiples of the vector's size; `past_caches_is_done` before another thread reads.
inline void store_past_caches(bfloat16* p, Vec v) {
#if defined(__AVX512F__) && defined(__clang__)
  __builtin_nontemporal_store(rounded_to_half(v), reinterpret_cast<HalfVec*>(p));
#elif defined(__AVX512F__)
  typedef long long Stored __attribute__((vector_size(sizeof(HalfVec))));
  __builtin_ia32_movntdq256(reinterpret_cast<Stored*>(p), (Stored)rounded_to_half(v));
#else
  store(p, v);
#endif
}

inline void past_caches_is_done() {
#if defined(__AVX512F__)
  __builtin_ia32_sfence();
#endif
}

inline float load_one(const float* p) { return *p; }

inline float load_one(const bfloat16* p) {
  uint32_t bits = uint32_t(p->bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline void store_one(float* p, float x) { *p = x; }

inline void store_one(bfloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = uint16_t(x == x ? rounded : (bits >> 16) | 0x40u);
}

}  // namespace

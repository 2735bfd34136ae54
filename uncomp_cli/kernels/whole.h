// Whole numbers beside lanes.h: thirty-two of 16 bits, a pair for each lane, and their products summed into sixteen of 32.
#ifndef UNCOMP_WHOLE_H
#define UNCOMP_WHOLE_H

#include "lanes.h"

INLINE int32_t pair_at(const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

#if defined(__AVX512F__)

typedef __m512i shorts;
typedef __m512i longs;

INLINE longs nothing(void) { return _mm512_setzero_si512(); }
INLINE shorts load_shorts(const uint8_t *p) { return _mm512_loadu_si512(p); }
// the four half-bytes of each number, the lowest first; its two bytes with their signs
INLINE shorts nibble(shorts x, int part) {
    return _mm512_and_si512(_mm512_srli_epi16(x, 4 * part), _mm512_set1_epi16(15));
}
INLINE shorts signed_byte(shorts x, int part) { return _mm512_srai_epi16(part ? x : _mm512_slli_epi16(x, 8), 8); }
INLINE shorts raised(shorts x, uint32_t where, int by) {  // where a bit is set
    return _mm512_mask_add_epi16(x, where, x, _mm512_set1_epi16((short)by));
}
INLINE longs with_pairs(longs sum, shorts x, int32_t pair) {
    return _mm512_dpwssd_epi32(sum, x, _mm512_set1_epi32(pair));
}
INLINE longs minus(longs x, int32_t y) { return _mm512_sub_epi32(x, _mm512_set1_epi32(y)); }
INLINE lanes as_lanes(longs x) { return _mm512_cvtepi32_ps(x); }
INLINE lanes load_bytes(const uint8_t *p, int with_sign) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm512_cvtepi32_ps(with_sign ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

#elif defined(__AVX2__)

typedef struct {
    __m256i a, b;
} shorts;
typedef shorts longs;

#define PAIR(value_a, value_b) ((shorts){(value_a), (value_b)})
INLINE longs nothing(void) { return PAIR(_mm256_setzero_si256(), _mm256_setzero_si256()); }
INLINE shorts load_shorts(const uint8_t *p) {
    return PAIR(_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}
INLINE shorts nibble(shorts x, int part) {
    __m256i low = _mm256_set1_epi16(15);
    return PAIR(_mm256_and_si256(_mm256_srli_epi16(x.a, 4 * part), low),
                _mm256_and_si256(_mm256_srli_epi16(x.b, 4 * part), low));
}
INLINE __m256i one_byte(__m256i x, int part) { return _mm256_srai_epi16(part ? x : _mm256_slli_epi16(x, 8), 8); }
INLINE shorts signed_byte(shorts x, int part) { return PAIR(one_byte(x.a, part), one_byte(x.b, part)); }
INLINE __m256i raise(__m256i x, uint32_t where, int by) {
    const __m256i bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16((short)where), bits), bits);
    return _mm256_add_epi16(x, _mm256_and_si256(set, _mm256_set1_epi16((short)by)));
}
INLINE shorts raised(shorts x, uint32_t where, int by) {
    return PAIR(raise(x.a, where & 0xffff, by), raise(x.b, where >> 16, by));
}
INLINE longs with_pairs(longs sum, shorts x, int32_t pair) {
    __m256i both = _mm256_set1_epi32(pair);
    return PAIR(_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.a, both)),
                _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.b, both)));
}
INLINE longs minus(longs x, int32_t y) {
    __m256i all_y = _mm256_set1_epi32(y);
    return PAIR(_mm256_sub_epi32(x.a, all_y), _mm256_sub_epi32(x.b, all_y));
}
INLINE lanes as_lanes(longs x) { return BOTH(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)); }
INLINE __m256 half_of_bytes(const uint8_t *p, int with_sign) {
    __m128i bytes = _mm_loadl_epi64((const __m128i *)p);
    return _mm256_cvtepi32_ps(with_sign ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
}
INLINE lanes load_bytes(const uint8_t *p, int with_sign) {
    return BOTH(half_of_bytes(p, with_sign), half_of_bytes(p + 8, with_sign));
}

#else

typedef struct {
    int16_t v[2 * LANES];
} shorts;
typedef struct {
    int32_t v[LANES];
} longs;

INLINE longs nothing(void) {
    longs zero = {{0}};
    return zero;
}
INLINE shorts load_shorts(const uint8_t *p) {
    shorts x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
INLINE shorts nibble(shorts x, int part) {
    for (int i = 0; i < 2 * LANES; i++) x.v[i] = (int16_t)(((uint16_t)x.v[i] >> (4 * part)) & 15);
    return x;
}
INLINE shorts signed_byte(shorts x, int part) {
    for (int i = 0; i < 2 * LANES; i++) x.v[i] = (int8_t)((uint16_t)x.v[i] >> (8 * part));
    return x;
}
INLINE shorts raised(shorts x, uint32_t where, int by) {
    for (int i = 0; i < 2 * LANES; i++) x.v[i] = (int16_t)(x.v[i] + by * (int)((where >> i) & 1));
    return x;
}
INLINE longs with_pairs(longs sum, shorts x, int32_t pair) {
    int16_t both[2];
    memcpy(both, &pair, sizeof both);
    for (int i = 0; i < LANES; i++) sum.v[i] += x.v[2 * i] * both[0] + x.v[2 * i + 1] * both[1];
    return sum;
}
INLINE longs minus(longs x, int32_t y) {
    for (int i = 0; i < LANES; i++) x.v[i] -= y;
    return x;
}
INLINE lanes as_lanes(longs x) { EACH(return, (float)x.v[i]); }
INLINE lanes load_bytes(const uint8_t *p, int with_sign) { EACH(return, with_sign ? (float)(int8_t)p[i] : (float)p[i]); }

#endif
#endif

// Sixteen float32 lanes, in the instructions that this file is compiled for: AVX-512, AVX2 with FMA and F16C, or plain C,
// which a compiler makes vectors of by itself (SSE2, NEON).
#ifndef UNCOMP_LANES_H
#define UNCOMP_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

INLINE float from_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t to_bits(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

// A float16: its exponent is 112 less than a float32's, and its subnormal numbers are scaled exactly.
INLINE float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    float size = from_bits(rest << 13) * 0x1p112f;
    uint32_t special = rest >= 0x7c00 ? 0x7f800000u : 0;
    return from_bits(to_bits(size) | special | sign);
}

INLINE float from_brain(uint16_t brain) { return from_bits((uint32_t)brain << 16); }

// The nearest float16, ties to even; what is too large becomes infinite.
INLINE uint16_t to_half(float number) {
    uint32_t bits = to_bits(number), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) {  // below the smallest normal float16: adding 0.5 rounds at its last place, 2^-24
        return (uint16_t)(sign | (to_bits(from_bits(size) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | ((size + 0xfff + ((size >> 13) & 1) - 0x38000000) >> 13));
}

INLINE uint16_t to_brain(float number) {
    uint32_t bits = to_bits(number);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// ROOM: so many lanes stay in registers while others are read.
#if defined(__AVX512F__)
#include <immintrin.h>

enum { ROOM = 16 };
typedef __m512 lanes;

INLINE lanes all(float x) { return _mm512_set1_ps(x); }
INLINE lanes load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, lanes a) { _mm512_storeu_ps(p, a); }
INLINE lanes load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE lanes load_brain(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE lanes add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
INLINE lanes sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
INLINE lanes mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
INLINE lanes over(lanes a, lanes b) { return _mm512_div_ps(a, b); }
INLINE lanes fma_of(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
INLINE lanes larger(lanes a, lanes b) { return _mm512_max_ps(a, b); }
INLINE lanes smaller(lanes a, lanes b) { return _mm512_min_ps(a, b); }
INLINE float sum(lanes a) { return _mm512_reduce_add_ps(a); }
INLINE lanes beside(lanes a, lanes b) { return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
INLINE void four_sums(lanes a, lanes b, lanes c, lanes d, float *y) {
    __m512d low = _mm512_castps_pd(beside(a, b)), high = _mm512_castps_pd(beside(c, d));
    __m512 four = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
    four = add(four, _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
}
INLINE float largest(lanes a) { return _mm512_reduce_max_ps(a); }
// a rounded to whole numbers, and b times two to the power of those
INLINE lanes rounded(lanes a) { return _mm512_roundscale_ps(a, 8); }
INLINE lanes doubled(lanes b, lanes whole) { return _mm512_scalef_ps(b, whole); }

#elif defined(__AVX2__)
#include <immintrin.h>

enum { ROOM = 6 };
typedef struct {
    __m256 a, b;
} lanes;

#define BOTH(value_a, value_b) ((lanes){(value_a), (value_b)})
INLINE lanes all(float x) { return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE lanes load(const float *p) { return BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE __m128i eight(const uint16_t *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE lanes load_half(const uint16_t *p) { return BOTH(_mm256_cvtph_ps(eight(p)), _mm256_cvtph_ps(eight(p + 8))); }
INLINE __m256 widened(__m128i brain) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(brain), 16));
}
INLINE lanes load_brain(const uint16_t *p) { return BOTH(widened(eight(p)), widened(eight(p + 8))); }
INLINE lanes add(lanes x, lanes y) { return BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
INLINE lanes sub(lanes x, lanes y) { return BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
INLINE lanes mul(lanes x, lanes y) { return BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
INLINE lanes over(lanes x, lanes y) { return BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
INLINE lanes fma_of(lanes x, lanes y, lanes z) {
    return BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
// x y + z, of which only the sum of all lanes is right: half of the registers.
INLINE lanes folded(lanes x, lanes y, lanes z) {
    return BOTH(_mm256_fmadd_ps(x.b, y.b, _mm256_fmadd_ps(x.a, y.a, z.a)), z.b);
}
INLINE lanes larger(lanes x, lanes y) { return BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
INLINE lanes smaller(lanes x, lanes y) { return BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
INLINE float sum(lanes x) {
    __m256 both = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE void four_sums(lanes a, lanes b, lanes c, lanes d, float *y) {
    __m256 low = _mm256_hadd_ps(_mm256_add_ps(a.a, a.b), _mm256_add_ps(b.a, b.b));
    __m256 high = _mm256_hadd_ps(_mm256_add_ps(c.a, c.b), _mm256_add_ps(d.a, d.b));
    __m256 both = _mm256_hadd_ps(low, high);
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}
INLINE float largest(lanes x) {
    __m256 both = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE lanes rounded(lanes x) { return BOTH(_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)); }
INLINE __m256 shifted(__m256 x, __m256 whole) {
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
INLINE lanes doubled(lanes x, lanes whole) { return BOTH(shifted(x.a, whole.a), shifted(x.b, whole.b)); }

#else

enum { ROOM = 4 };
typedef struct {
    float v[LANES];
} lanes;

#define EACH(result, expression)          \
    do {                                  \
        lanes r_;                         \
        for (int i = 0; i < LANES; i++) { \
            r_.v[i] = (expression);       \
        }                                 \
        result r_;                        \
    } while (0)
INLINE lanes all(float x) { EACH(return, x); }
INLINE lanes load(const float *p) { EACH(return, p[i]); }
INLINE void store(float *p, lanes x) { memcpy(p, x.v, sizeof x.v); }
INLINE lanes load_half(const uint16_t *p) { EACH(return, from_half(p[i])); }
INLINE lanes load_brain(const uint16_t *p) { EACH(return, from_brain(p[i])); }
INLINE lanes add(lanes x, lanes y) { EACH(return, x.v[i] + y.v[i]); }
INLINE lanes sub(lanes x, lanes y) { EACH(return, x.v[i] - y.v[i]); }
INLINE lanes mul(lanes x, lanes y) { EACH(return, x.v[i] * y.v[i]); }
INLINE lanes over(lanes x, lanes y) { EACH(return, x.v[i] / y.v[i]); }
INLINE lanes fma_of(lanes x, lanes y, lanes z) { EACH(return, x.v[i] * y.v[i] + z.v[i]); }
INLINE lanes larger(lanes x, lanes y) { EACH(return, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
INLINE lanes smaller(lanes x, lanes y) { EACH(return, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
INLINE float sum(lanes x) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
    }
    return x.v[0];
}
INLINE void four_sums(lanes a, lanes b, lanes c, lanes d, float *y) {
    y[0] = sum(a), y[1] = sum(b), y[2] = sum(c), y[3] = sum(d);
}
INLINE float largest(lanes x) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    }
    return x.v[0];
}
INLINE lanes rounded(lanes x) { EACH(return, (float)(int32_t)(x.v[i] + (x.v[i] < 0 ? -0.5f : 0.5f))); }
INLINE lanes doubled(lanes x, lanes whole) {
    EACH(return, from_bits(to_bits(x.v[i]) + ((uint32_t)(int32_t)whole.v[i] << 23)));
}

#endif

#if !defined(__AVX2__) || defined(__AVX512F__)
INLINE lanes folded(lanes x, lanes y, lanes z) { return fma_of(x, y, z); }
#endif

// e to the power of x, which is held in [-87, 88]: 2^n e^f with x = n ln 2 + f, e^f by its series of degree 7 (the
// remainder is below 1e-8 for |f| < 0.35). What is not a number stays none.
INLINE lanes exponential(lanes x) {
    x = smaller(all(88.0f), larger(all(-87.0f), x));
    lanes whole = rounded(mul(x, all(1.44269504f)));
    lanes f = fma_of(whole, all(-0.693359375f), x);  // ln 2 in two parts: the first is exact in a product
    f = fma_of(whole, all(2.12194440e-4f), f);
    lanes series = all(1.0f / 5040);
    series = fma_of(series, f, all(1.0f / 720));
    series = fma_of(series, f, all(1.0f / 120));
    series = fma_of(series, f, all(1.0f / 24));
    series = fma_of(series, f, all(1.0f / 6));
    series = fma_of(series, f, all(0.5f));
    series = fma_of(series, f, all(1.0f));
    series = fma_of(series, f, all(1.0f));
    return doubled(series, whole);
}

#endif

// Sixteen floats as two AVX2 registers. The twin of v16_avx512.h: the same functions, the same
// bits. Included by avx2.c only.
#ifndef KERNELS_CPU_V16_AVX2_H
#define KERNELS_CPU_V16_AVX2_H
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define V16 static inline __attribute__((always_inline))

// Tiles that fill the registers: most rows and their columns of 16; of up to V16_FEW rows the
// columns are V16_WIDE.
enum { V16_QUERIES = 6, V16_COLUMNS = 1, V16_FEW = 3, V16_WIDE = 2, V16_TILE = 6 };
#define V16_EACH_QUERIES(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef struct v16 {
    __m256 a, b;
} v16;
typedef struct v16i {
    __m256i a, b;
} v16i;

V16 v16 v16_set1(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
V16 v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
V16 void v16_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
V16 __m256i v16_lanes_below(int n, int base) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - base), lane);
}
// The first n lanes from memory, zeros behind.
V16 v16 v16_load_n(const float *p, int n) {
    return (v16){_mm256_maskload_ps(p, v16_lanes_below(n, 0)),
                 n > 8 ? _mm256_maskload_ps(p + 8, v16_lanes_below(n, 8)) : _mm256_setzero_ps()};
}
V16 void v16_store_n(float *p, v16 x, int n) {
    _mm256_maskstore_ps(p, v16_lanes_below(n, 0), x.a);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, v16_lanes_below(n, 8), x.b);
}
// Lanes from n on become `other`.
V16 v16 v16_keep(v16 x, int n, float other) {
    __m256 o = _mm256_set1_ps(other);
    return (v16){_mm256_blendv_ps(o, x.a, _mm256_castsi256_ps(v16_lanes_below(n, 0))),
                 _mm256_blendv_ps(o, x.b, _mm256_castsi256_ps(v16_lanes_below(n, 8)))};
}
V16 v16 v16_add(v16 x, v16 y) { return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
V16 v16 v16_sub(v16 x, v16 y) { return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
V16 v16 v16_mul(v16 x, v16 y) { return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
V16 v16 v16_div(v16 x, v16 y) { return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
V16 v16 v16_max(v16 x, v16 y) { return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
V16 v16 v16_min(v16 x, v16 y) { return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
V16 v16 v16_fma(v16 x, v16 y, v16 z) { // x y + z
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
V16 v16 v16_abs(v16 x) {
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return (v16){_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
// y where x >= bound, else 0.
V16 v16 v16_where_ge(v16 x, v16 bound, v16 y) {
    return (v16){_mm256_and_ps(_mm256_cmp_ps(x.a, bound.a, _CMP_GE_OQ), y.a),
                 _mm256_and_ps(_mm256_cmp_ps(x.b, bound.b, _CMP_GE_OQ), y.b)};
}
// Lanes i + i+8, then i + i+4, i + i+2, i + i+1.
V16 float v16_sum(v16 x) {
    __m256 y = _mm256_add_ps(x.a, x.b);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
V16 float v16_largest(v16 x) {
    __m256 y = _mm256_max_ps(x.a, x.b);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
V16 bool v16_any_above(v16 x, v16 y) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ),
                                           _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) != 0;
}
V16 v16i v16_round(v16 x) { return (v16i){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
V16 v16 v16_float(v16i x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
V16 v16 v16_pow2(v16i n) { // 2^n for -126 <= n <= 127
    __m256i bias = _mm256_set1_epi32(127);
    return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
V16 v16 v16_times_pow2(v16 x, v16 n) { // x 2^n, n with 1.5 * 2^23 added
    __m256i a = _mm256_slli_epi32(_mm256_castps_si256(n.a), 23),
            b = _mm256_slli_epi32(_mm256_castps_si256(n.b), 23);
    return (v16){_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.a), a)),
                 _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.b), b))};
}
V16 int32_t v16i_sum(v16i x) {
    __m256i y = _mm256_add_epi32(x.a, x.b);
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}
V16 void v16i_store_i8(int8_t *p, v16i x) { // saturating
    __m256i y = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packs_epi16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
}
V16 v16 v16_load_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
V16 void v16_store_f16(uint16_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
V16 v16 v16_load_i8(const int8_t *p) {
    return (v16){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
V16 v16 v16_load_bf16(const uint16_t *p) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    __m256i y = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
    return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(y, 16))};
}

#endif

// Sixteen floats as one AVX-512 register. The twin of v16_avx2.h: the same functions, the same
// bits. Included by avx512.c only. Uses only what SIMDe and tests/kernels/simde_shim.h can emulate,
// so that it is tested on machines without AVX-512.
#ifndef KERNELS_CPU_V16_AVX512_H
#define KERNELS_CPU_V16_AVX512_H
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define V16 static inline __attribute__((always_inline))

// Tiles that fill the registers: most rows and their columns of 16; of up to V16_FEW rows the
// columns are V16_WIDE.
enum { V16_QUERIES = 12, V16_COLUMNS = 2, V16_FEW = 6, V16_WIDE = 4, V16_TILE = 24 };
#define V16_EACH_QUERIES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

typedef __m512 v16;
typedef __m512i v16i;

V16 __mmask16 v16_lanes_below(int n) {
    return (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}
V16 v16 v16_set1(float x) { return _mm512_set1_ps(x); }
V16 v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
V16 void v16_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
// The first n lanes from memory, zeros behind.
V16 v16 v16_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(v16_lanes_below(n), p); }
V16 void v16_store_n(float *p, v16 x, int n) { _mm512_mask_storeu_ps(p, v16_lanes_below(n), x); }
// Lanes from n on become `other`.
V16 v16 v16_keep(v16 x, int n, float other) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), v16_lanes_below(n), x);
}
V16 v16 v16_add(v16 x, v16 y) { return _mm512_add_ps(x, y); }
V16 v16 v16_sub(v16 x, v16 y) { return _mm512_sub_ps(x, y); }
V16 v16 v16_mul(v16 x, v16 y) { return _mm512_mul_ps(x, y); }
V16 v16 v16_div(v16 x, v16 y) { return _mm512_div_ps(x, y); }
V16 v16 v16_max(v16 x, v16 y) { return _mm512_max_ps(x, y); }
V16 v16 v16_min(v16 x, v16 y) { return _mm512_min_ps(x, y); }
V16 v16 v16_fma(v16 x, v16 y, v16 z) { return _mm512_fmadd_ps(x, y, z); } // x y + z
V16 v16 v16_abs(v16 x) { return _mm512_abs_ps(x); }
// y where x >= bound, else 0.
V16 v16 v16_where_ge(v16 x, v16 bound, v16 y) {
    return _mm512_mask_mov_ps(_mm512_setzero_ps(), _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ), y);
}
V16 __m256 v16_low(v16 x) { return _mm512_castps512_ps256(x); }
V16 __m256 v16_high(v16 x) { return _mm512_extractf32x8_ps(x, 1); }
// Lanes i + i+8, then i + i+4, i + i+2, i + i+1.
V16 float v16_sum(v16 x) {
    __m256 y = _mm256_add_ps(v16_low(x), v16_high(x));
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
V16 float v16_largest(v16 x) {
    __m256 y = _mm256_max_ps(v16_low(x), v16_high(x));
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
V16 bool v16_any_above(v16 x, v16 y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ) != 0; }
V16 v16i v16_round(v16 x) { return _mm512_cvtps_epi32(x); }
V16 v16 v16_float(v16i x) { return _mm512_cvtepi32_ps(x); }
V16 v16 v16_pow2(v16i n) { // 2^n for -126 <= n <= 127
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
V16 v16 v16_times_pow2(v16 x, v16 n) { // x 2^n, n with 1.5 * 2^23 added
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
V16 int32_t v16i_sum(v16i x) {
    __m256i y = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}
V16 void v16i_store_i8(int8_t *p, v16i x) { // saturating
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(x));
}
V16 v16 v16_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
V16 void v16_store_f16(uint16_t *p, v16 x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
V16 v16 v16_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V16 v16 v16_load_bf16(const uint16_t *p) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}

#endif

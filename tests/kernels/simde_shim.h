// What SIMDe 0.7.4 lacks or gets wrong of the AVX-512 intrinsics that kernels/cpu/avx512*.c use.
// Included before those sources (-include) when they are compiled for AVX2 with
// SIMDE_ENABLE_NATIVE_ALIASES, so that they are tested on machines without AVX-512. Every function
// does what Intel's guide says, half by half with AVX2 and F16C or lane by lane.
#ifndef TESTS_KERNELS_SIMDE_SHIM_H
#define TESTS_KERNELS_SIMDE_SHIM_H
#include <string.h>
#include <immintrin.h>
#include <simde/x86/avx512.h>

typedef union shim {
    simde__m512 f;
    simde__m512i i;
    __m256 f8[2];
    __m256i i8[2];
    float lane[16];
} shim;

static inline simde__m512 shim_cvtph_ps(__m256i h) {
    shim r = {.f8 = {_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
                     _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))}};
    return r.f;
}
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(h) shim_cvtph_ps(h)

static inline __m256i shim_cvtps_ph(simde__m512 x) {
    shim r = {.f = x};
    return _mm256_set_m128i(_mm256_cvtps_ph(r.f8[1], _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(r.f8[0], _MM_FROUND_TO_NEAREST_INT));
}
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) shim_cvtps_ph(x)

static inline simde__m512 shim_cvtepi32_ps(simde__m512i x) {
    shim r = {.i = x};
    for (int k = 0; k < 2; k++)
        r.f8[k] = _mm256_cvtepi32_ps(r.i8[k]);
    return r.f;
}
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) shim_cvtepi32_ps(x)

static inline simde__m512i shim_cvtps_epi32(simde__m512 x) {
    shim r = {.f = x};
    for (int k = 0; k < 2; k++)
        r.i8[k] = _mm256_cvtps_epi32(r.f8[k]);
    return r.i;
}
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) shim_cvtps_epi32(x)

static inline simde__m512i shim_cvtepi8_epi32(__m128i x) {
    shim r = {.i8 = {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))}};
    return r.i;
}
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(x) shim_cvtepi8_epi32(x)

static inline simde__m512i shim_cvtepu16_epi32(__m256i x) {
    shim r = {.i8 = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                     _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))}};
    return r.i;
}
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x) shim_cvtepu16_epi32(x)

static inline simde__m512 shim_maskz_loadu_ps(unsigned mask, const float *p) {
    shim r = {.lane = {0}};
    for (int k = 0; k < 16; k++)
        if (mask >> k & 1)
            r.lane[k] = p[k];
    return r.f;
}
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, p) shim_maskz_loadu_ps(mask, p)

static inline void shim_mask_storeu_ps(float *p, unsigned mask, simde__m512 x) {
    shim r = {.f = x};
    for (int k = 0; k < 16; k++)
        if (mask >> k & 1)
            p[k] = r.lane[k];
}
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, mask, x) shim_mask_storeu_ps(p, mask, x)

static inline __m256 shim_extractf32x8_ps(simde__m512 x, int k) {
    shim r = {.f = x};
    return r.f8[k];
}
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, k) shim_extractf32x8_ps(x, k)

#endif

// Integer products of 16-row panels with int8 columns on AVX-512 VNNI. The 16 rows are the 16
// lanes; vpdpbusd multiplies four unsigned codes of a row with four activations that are broadcast.
// Codes stored with an offset start the sum at -offset * (sum of activations), so the integer is
// exact. Then sum += (float(integer) * scale of x) * scale of w, group after group, which fixes
// every float's bits: the same in avx2_gemm.c. Reached after a CPUID check only; nothing here
// allocates or knows threads.
#include "kernels/cpu/v16_avx512.h"
#include "kernels/cpu/panel_v16.h"
#include "kernels/cpu/isa.h"

enum { TOGETHER = 8 }; // most columns whose integer chains run in parallel

V16 __m512i broadcast4(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

V16 __m512 scales(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

// The 8 k-groups of a block as unsigned bytes.
V16 void unpack(bool nibbles, const uint8_t *q, __m512i *w) {
    if (!nibbles) {
        UNROLL for (int g = 0; g < 8; g++) w[g] = _mm512_loadu_si512(q + 64 * g);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int g = 0; g < 4; g++) {
        __m512i x = _mm512_loadu_si512(q + 64 * g);
        w[g] = _mm512_and_si512(x, low);
        w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
    }
}

// sum += w * four activations, which the instruction itself broadcasts: gcc makes two of it, and
// then the front end is the limit (44 % of the peak at 16 columns; 64 % this way).
V16 void dot4(__m512i *sum, __m512i w, const int8_t *x) {
#ifdef __AVX512VNNI__
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(w), "m"(*(const int32_t(*)[1])x));
#else // emulated
    *sum = _mm512_dpbusd_epi32(*sum, w, broadcast4(x));
#endif
}

// sum += (float(integer of `steps` k-groups) * scale of x) * scale of w for n columns side by side,
// whose integer chains run in parallel. start NULL: 0.
V16 void dots(int n, int steps, const __m512i *w, const int8_t *x, const int32_t *start,
              const float *d, __m512 scale, __m512 *sum) {
    __m512i dot[TOGETHER];
    UNROLL for (int c = 0; c < n; c++) dot[c] = _mm512_set1_epi32(start ? start[c] : 0);
    UNROLL for (int k = 0; k < steps; k++) UNROLL for (int c = 0; c < n; c++)
        dot4(&dot[c], w[k], x + GROUP * c + 4 * k);
    UNROLL for (int c = 0; c < n; c++) {
        __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[c]), _mm512_set1_ps(d[c]));
        sum[c] = _mm512_fmadd_ps(v, scale, sum[c]);
    }
}

// together: columns whose chains run in parallel; more need more registers.
V16 void tile(panel_kind kind, int n, int together, const tile_args *a) {
    const bool zero = kind == PANEL_W4Z, nibbles = kind == PANEL_W4 || kind == PANEL_W4M || zero,
               halves = kind == PANEL_W6, min = kind == PANEL_W4M || kind == PANEL_W5M || zero;
    const size_t head = min || halves ? 64 : 32, block = head + (nibbles ? 256 : 512),
                 width = (size_t)a->width;
    const uint8_t *p = a->blocks;
    const int8_t *x = a->codes;
    const float *d = a->scale;
    const int32_t *extra = a->extra;
    __m512 sum[ACT_WIDTH];
    UNROLL for (int c = 0; c < n; c++) sum[c] = _mm512_setzero_ps();
    for (int g = 0; g < a->n_groups; g++) {
        __m512i w[8];
        prefetch(p, block);
        unpack(nibbles, p + head, w);
        __m512 scale = scales(p), second = head == 64 ? scales(p + 32) : scale;
        if (zero)
            second = _mm512_mul_ps(second, scale);
        UNROLL for (int c = 0; c < n; c += together) {
            dots(together, halves ? 4 : 8, w, x + GROUP * c, min ? NULL : extra + c, d + c, scale,
                 sum + c);
            if (halves)
                dots(together, 4, w + 4, x + GROUP * c + 16, extra + width + c, d + c, second,
                     sum + c);
        }
        UNROLL for (int c = 0; min && c < n; c++) sum[c] =
            _mm512_fmadd_ps(_mm512_set1_ps(((const float *)extra)[c]), second, sum[c]);
        p += block;
        x += GROUP * width;
        d += width;
        extra += halves ? 2 * width : width;
    }
    UNROLL for (int c = 0; c < n; c++) _mm512_storeu_ps(a->sums + PANEL_ROWS * c, sum[c]);
}

#define TILE(kind, n)                                                                              \
    __attribute__((noinline)) static void tile_##kind##_##n(const tile_args *a) {                  \
        tile(PANEL_##kind, n, n > 12 ? 4 : n > 8 ? 6 : n, a);                                      \
    }
#define TILES(kind)                                                                                \
    TILE(kind, 1)                                                                                  \
    TILE(kind, 2)                                                                                  \
    TILE(kind, 3)                                                                                  \
    TILE(kind, 4)                                                                                  \
    TILE(kind, 5)                                                                                  \
    TILE(kind, 6)                                                                                  \
    TILE(kind, 7)                                                                                  \
    TILE(kind, 8)                                                                                  \
    TILE(kind, 12)                                                                                 \
    TILE(kind, 16)                                                                                 \
    static const tile_fn tiles_##kind[] = {                                                        \
        tile_##kind##_1, tile_##kind##_2, tile_##kind##_3, tile_##kind##_4,  tile_##kind##_5,      \
        tile_##kind##_6, tile_##kind##_7, tile_##kind##_8, tile_##kind##_12, tile_##kind##_16};
TILES(W4)
TILES(W4M)
TILES(W4Z)
TILES(W5)
TILES(W5M)
TILES(W6)

static const int sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

// W8's codes are unsigned like W5's; only the start of the sum differs.
static const tile_set sets[] = {
    [PANEL_W4] = {sizes, tiles_W4, SIZES, EXTRA_8},
    [PANEL_W4M] = {sizes, tiles_W4M, SIZES, EXTRA_SUM},
    [PANEL_W4Z] = {sizes, tiles_W4Z, SIZES, EXTRA_SUM},
    [PANEL_W5] = {sizes, tiles_W5, SIZES, EXTRA_16},
    [PANEL_W5M] = {sizes, tiles_W5M, SIZES, EXTRA_SUM},
    [PANEL_W6] = {sizes, tiles_W6, SIZES, EXTRA_32},
    [PANEL_W8] = {sizes, tiles_W5, SIZES, EXTRA_128},
};

void avx512_matmul_panel(const panel *p, const act *a, const matmul_args *m, int from, int to) {
    if (p->kind >= PANEL_F16)
        matmul_float_panel(p, m, from, to);
    else
        matmul_code_panel(p, a, m, from, to, &sets[p->kind]);
}

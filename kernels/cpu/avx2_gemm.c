// Integer products of 16-row panels with int8 columns on AVX2, which has no VNNI. vpmaddubsw
// multiplies unsigned codes with broadcast activations into pairs of int16; those are summed in
// int16 as long as they must fit (4-bit codes: a whole group, 2 * 8 * 15 * 127 = 30480; 5-bit: 4
// steps, 6-bit: 2 steps), then vpmaddwd widens. 8-bit codes are signed: |w| times the activation
// with w's sign, widened at once (128 * 127 * 2 fits). The integers and the order of floats are
// those of avx512_gemm.c. The steps are in asm because both compilers reorder them into spills (100
// against 180 GOPS); float sums live in memory, since the integers need the registers.
#include "kernels/cpu/v16_avx2.h"
#include "kernels/cpu/panel_v16.h"
#include "kernels/cpu/isa.h"

enum { COLUMNS_MAX = 4, SUMS = 2 * COLUMNS_MAX };

#define FENCE __asm__ volatile("" ::: "memory")

V16 __m256i load32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

V16 __m256 scales8(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

// k-group g of a block: rows 0-7 and 8-15.
V16 void operand(bool nibbles, const uint8_t *q, int g, __m256i *w) {
    const uint8_t *p = q + (nibbles ? g & 3 : g) * 64;
    w[0] = load32(p);
    w[1] = load32(p + 32);
    if (!nibbles)
        return;
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; i++)
        w[i] = _mm256_and_si256(g > 3 ? _mm256_srli_epi16(w[i], 4) : w[i], low);
}

// s (int16) = or += w * four activations at x, for both halves of the rows.
V16 void start16(__m256i *s, const __m256i *w, const int8_t *x) {
    __asm__("vpbroadcastd %4, %1\n\tvpmaddubsw %1, %2, %0\n\tvpmaddubsw %1, %3, %1"
            : "=&x"(s[0]), "=&x"(s[1])
            : "x"(w[0]), "x"(w[1]), "m"(*(const int32_t(*)[1])x));
}
V16 void step16(__m256i *s, const __m256i *w, const int8_t *x) {
    __m256i y, u;
    __asm__ volatile("vpbroadcastd %6, %2\n\tvpmaddubsw %2, %4, %3\n\tvpmaddubsw %2, %5, %2\n\t"
                     "vpaddw %3, %0, %0\n\tvpaddw %2, %1, %1"
                     : "+x"(s[0]), "+x"(s[1]), "=&x"(y), "=&x"(u)
                     : "x"(w[0]), "x"(w[1]), "m"(*(const int32_t(*)[1])x));
}

// The integers of `steps` k-groups from g on: codes unsigned, int16 sums, widened into sums (int32,
// [column][2]).
V16 void unsigned_steps(bool nibbles, int n, int g, int steps, const uint8_t *q, const int8_t *x,
                        __m256i *sums) {
    __m256i s[SUMS];
    UNROLL for (int i = 0; i < steps; i++) {
        __m256i w[2];
        FENCE;
        operand(nibbles, q, g + i, w);
        UNROLL for (int c = 0; c < n; c++) {
            const int8_t *y = x + GROUP * c + 4 * (g + i);
            if (i)
                step16(&s[2 * c], w, y);
            else
                start16(&s[2 * c], w, y);
        }
    }
    const __m256i one = _mm256_set1_epi16(1);
    UNROLL for (int i = 0; i < 2 * n; i++) sums[i] =
        _mm256_add_epi32(sums[i], _mm256_madd_epi16(s[i], one));
}

V16 void signed_steps(int n, const uint8_t *q, const int8_t *x, __m256i *sums) {
    const __m256i one = _mm256_set1_epi16(1);
    UNROLL for (int g = 0; g < 8; g++) {
        __m256i w[2], size[2];
        FENCE;
        operand(false, q, g, w);
        UNROLL for (int h = 0; h < 2; h++) size[h] = _mm256_abs_epi8(w[h]);
        UNROLL for (int c = 0; c < n; c++) {
            int32_t four;
            memcpy(&four, x + GROUP * c + 4 * g, sizeof four);
            __m256i y = _mm256_set1_epi32(four);
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i u = _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(y, w[h]));
                sums[2 * c + h] = _mm256_add_epi32(sums[2 * c + h], _mm256_madd_epi16(u, one));
            }
            __asm__ volatile("" : "+x"(sums[2 * c]), "+x"(sums[2 * c + 1])); // in this order
        }
    }
}

V16 void start_sums(int n, const int32_t *extra, __m256i *sums) {
    UNROLL for (int i = 0; i < 2 * n; i++) sums[i] =
        extra ? _mm256_set1_epi32(extra[i / 2]) : _mm256_setzero_si256();
}

// f += (float(sum) * scale of x) * scale of w.
V16 void add_scaled(int n, const __m256i *sums, const float *d, const uint8_t *scale, float *f) {
    __m256 s[2] = {scales8(scale), scales8(scale + 16)};
    UNROLL for (int i = 0; i < 2 * n; i++) {
        __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), _mm256_broadcast_ss(d + i / 2));
        _mm256_store_ps(f + 8 * i, _mm256_fmadd_ps(v, s[i & 1], _mm256_load_ps(f + 8 * i)));
    }
}

// f += (scale of x * sum of x's codes) * min; scale not NULL: min is a multiple of it.
V16 void add_min(int n, const int32_t *extra, const uint8_t *min, const uint8_t *scale, float *f) {
    __m256 m[2] = {scales8(min), scales8(min + 16)};
    if (scale)
        UNROLL for (int h = 0; h < 2; h++) m[h] = _mm256_mul_ps(m[h], scales8(scale + 16 * h));
    UNROLL for (int i = 0; i < 2 * n; i++) {
        __m256 x_sum = _mm256_castsi256_ps(_mm256_set1_epi32(extra[i / 2]));
        _mm256_store_ps(f + 8 * i, _mm256_fmadd_ps(x_sum, m[i & 1], _mm256_load_ps(f + 8 * i)));
    }
}

V16 void block_w6(int n, const uint8_t *p, const int8_t *x, const float *d, const int32_t *extra,
                  size_t width, float *f) {
    __m256i sums[SUMS];
    UNROLL for (int half = 0; half < 2; half++) {
        start_sums(n, extra + (half ? width : 0), sums);
        unsigned_steps(false, n, 4 * half, 2, p + 64, x, sums);
        unsigned_steps(false, n, 4 * half + 2, 2, p + 64, x, sums);
        add_scaled(n, sums, d, p + 32 * half, f);
    }
}

V16 void tile(panel_kind kind, int n, const tile_args *a) {
    const bool zero = kind == PANEL_W4Z, nibbles = kind == PANEL_W4 || kind == PANEL_W4M || zero,
               halves = kind == PANEL_W6, min = kind == PANEL_W4M || kind == PANEL_W5M || zero;
    const size_t head = min || halves ? 64 : 32, block = head + (nibbles ? 256 : 512),
                 width = (size_t)a->width;
    const uint8_t *p = a->blocks;
    const int8_t *x = a->codes;
    const float *d = a->scale;
    const int32_t *extra = a->extra;
    float f[PANEL_ROWS * COLUMNS_MAX] __attribute__((aligned(32)));
    UNROLL for (int i = 0; i < 2 * n; i++) _mm256_store_ps(f + 8 * i, _mm256_setzero_ps());
    for (int g = 0; g < a->n_groups; g++) {
        prefetch(p, block);
        if (halves) {
            block_w6(n, p, x, d, extra, width, f);
        } else {
            __m256i sums[SUMS];
            start_sums(n, min || kind == PANEL_W8 ? NULL : extra, sums);
            if (kind == PANEL_W8) {
                signed_steps(n, p + head, x, sums);
            } else if (nibbles) {
                unsigned_steps(true, n, 0, 8, p + head, x, sums);
            } else {
                unsigned_steps(false, n, 0, 4, p + head, x, sums);
                unsigned_steps(false, n, 4, 4, p + head, x, sums);
            }
            add_scaled(n, sums, d, p, f);
            if (min)
                add_min(n, extra, p + 32, zero ? p : NULL, f);
        }
        p += block;
        x += GROUP * width;
        d += width;
        if (kind != PANEL_W8)
            extra += halves ? 2 * width : width;
    }
    memcpy(a->sums, f, (size_t)n * PANEL_ROWS * sizeof *f);
}

#define TILE(kind, n)                                                                              \
    __attribute__((noinline)) static void tile_##kind##_##n(const tile_args *a) {                  \
        tile(PANEL_##kind, n, a);                                                                  \
    }
#define TILES(kind)                                                                                \
    TILE(kind, 1)                                                                                  \
    TILE(kind, 2)                                                                                  \
    TILE(kind, 3)                                                                                  \
    TILE(kind, 4)                                                                                  \
    static const tile_fn tiles_##kind[] = {tile_##kind##_1, tile_##kind##_2, tile_##kind##_3,      \
                                           tile_##kind##_4};
TILES(W4)
TILES(W4M)
TILES(W4Z)
TILES(W5)
TILES(W5M)
TILES(W6)
TILES(W8)

static const int sizes[] = {1, 2, 3, 4};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static const tile_set sets[] = {
    [PANEL_W4] = {sizes, tiles_W4, SIZES, EXTRA_8},
    [PANEL_W4M] = {sizes, tiles_W4M, SIZES, EXTRA_SUM},
    [PANEL_W4Z] = {sizes, tiles_W4Z, SIZES, EXTRA_SUM},
    [PANEL_W5] = {sizes, tiles_W5, SIZES, EXTRA_16},
    [PANEL_W5M] = {sizes, tiles_W5M, SIZES, EXTRA_SUM},
    [PANEL_W6] = {sizes, tiles_W6, SIZES, EXTRA_32},
    [PANEL_W8] = {sizes, tiles_W8, SIZES, EXTRA_KINDS},
};

void avx2_matmul_panel(const panel *p, const act *a, const matmul_args *m, int from, int to) {
    if (p->kind >= PANEL_F16)
        matmul_float_panel(p, m, from, to);
    else
        matmul_code_panel(p, a, m, from, to, &sets[p->kind]);
}

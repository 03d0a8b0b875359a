// One panel times columns, over v16: what both instruction sets share around their integer tiles,
// and panels that hold floats. Included by avx2_gemm.c and avx512_gemm.c.
#ifndef KERNELS_CPU_PANEL_V16_H
#define KERNELS_CPU_PANEL_V16_H
#include "kernels/cpu/cpu.h"

typedef struct tile_args { // some columns of one panel; pointers at the first column's first group
    const uint8_t *blocks;
    const int8_t *codes;
    const float *scale;
    const int32_t *extra; // what the panel's kind needs
    float *sums;          // [columns][16], written
    int n_groups, width;  // width: columns from one group to the next
} tile_args;

// Weights come from memory once per step, and computing is to go on meanwhile: the hardware's own
// prefetching ends at pages and comes too late (M = 1: 1.4 times as fast, M = 8: 1.8).
V16 void prefetch(const uint8_t *block, size_t bytes) {
    enum { AHEAD = 4096 };
    UNROLL for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)block + AHEAD + i, _MM_HINT_T1);
}

typedef void (*tile_fn)(const tile_args *a);

typedef struct tile_set { // the tiles of one kind
    const int *sizes;     // columns, ascending from 1
    const tile_fn *tiles;
    int n_sizes;
    act_extra extra; // EXTRA_KINDS: none
} tile_set;

// Values k .. k + n - 1 of a float panel as float.
static const float *panel_floats(const panel *p, int k, int n, float *scratch) {
    if (p->kind == PANEL_F32)
        return (const float *)p->data + (size_t)k * PANEL_ROWS;
    const uint16_t *h = (const uint16_t *)p->data + (size_t)k * PANEL_ROWS;
    for (int i = 0; i < n; i++, h += PANEL_ROWS)
        v16_store(scratch + i * PANEL_ROWS,
                  p->kind == PANEL_F16 ? v16_load_f16(h) : v16_load_bf16(h));
    return scratch;
}

// Writes 16 sums of a panel to row `column` of y.
V16 void finish_column(const panel *p, const matmul_args *m, int column, v16 sum) {
    float *y = m->y + column * m->y_stride + p->row;
    v16 v = v16_mul(sum, v16_load(p->factor));
    if (m->bias)
        v = v16_add(v, v16_load_n(m->bias + p->row, p->n_rows));
    if (p->n_rows == PANEL_ROWS)
        v16_store(y, v);
    else
        v16_store_n(y, v, p->n_rows);
}

// ---- panels that hold floats. Each sum runs over k in order, whatever the tile.

typedef struct madd { // c[n][16] += a[n][k] b[k][16]; a's rows are lda floats apart
    const float *a, *b;
    float *c;
    size_t lda;
    int k;
} madd;

V16 void madd_tile(const madd *m, int n) {
    v16 sum[V16_QUERIES];
    UNROLL for (int i = 0; i < n; i++) sum[i] = v16_set1(0);
    const float *a = m->a, *b = m->b;
    for (int k = 0; k < m->k; k++, a++, b += 16) {
        v16 v = v16_load(b);
        UNROLL for (int i = 0; i < n; i++) sum[i] =
            v16_fma(v16_set1(a[(size_t)i * m->lda]), v, sum[i]);
    }
    UNROLL for (int i = 0; i < n; i++)
        v16_store(m->c + 16 * i, v16_add(v16_load(m->c + 16 * i), sum[i]));
}

static void madd_rows(const madd *m, int n) {
    switch (n) {
#define ROWS(i)                                                                                    \
    case i:                                                                                        \
        madd_tile(m, i);                                                                           \
        break;
        V16_EACH_QUERIES(ROWS)
#undef ROWS
    }
}

// Any n.
static void madd_all(madd m, int n) {
    for (int i = 0; i < n; i += V16_QUERIES, m.a += V16_QUERIES * m.lda, m.c += V16_QUERIES * 16)
        madd_rows(&m, n - i < V16_QUERIES ? n - i : V16_QUERIES);
}

// y for columns from .. to - 1 of a panel that holds floats: partial sums of 32 values, then their
// sum.
static void matmul_float_panel(const panel *p, const matmul_args *m, int from, int to) {
    enum { STEP = 32, COLUMNS = 16 };
    float sums[COLUMNS * PANEL_ROWS], values[STEP * PANEL_ROWS];
    int n_in = (int)m->w->n_in;
    for (int c = from; c < to; c += COLUMNS) {
        int n = to - c < COLUMNS ? to - c : COLUMNS;
        memset(sums, 0, sizeof sums);
        for (int k = 0; k < n_in; k += STEP) {
            int depth = n_in - k < STEP ? n_in - k : STEP;
            madd_all((madd){.a = m->x + c * m->x_stride + k,
                            .b = panel_floats(p, k, depth, values),
                            .c = sums,
                            .lda = (size_t)m->x_stride,
                            .k = depth},
                     n);
        }
        for (int i = 0; i < n; i++)
            finish_column(p, m, c + i, v16_load(sums + i * PANEL_ROWS));
    }
}

// y for columns from .. to - 1 of a panel that holds codes, by the largest tiles that fit.
static void matmul_code_panel(const panel *p, const act *a, const matmul_args *m, int from, int to,
                              const tile_set *set) {
    float sums[ACT_WIDTH * PANEL_ROWS];
    const int32_t *extra = set->extra < EXTRA_KINDS ? a->extra[set->extra] : NULL;
    size_t words = set->extra == EXTRA_32 ? 2 : 1;
    for (int c = from, n; c < to; c += n) {
        size_t within = (size_t)(c % a->width),
               group = (size_t)(c / a->width) * (size_t)a->n_groups * (size_t)a->width;
        int left = a->width - (int)within < to - c ? a->width - (int)within : to - c,
            i = set->n_sizes - 1;
        while (set->sizes[i] > left)
            i--;
        n = set->sizes[i];
        set->tiles[i](&(tile_args){.blocks = p->data,
                                   .codes = a->codes + (group + within) * GROUP,
                                   .scale = a->scale + group + within,
                                   .extra = extra ? extra + group * words + within : NULL,
                                   .sums = sums,
                                   .n_groups = a->n_groups,
                                   .width = a->width});
        for (int j = 0; j < n; j++)
            finish_column(p, m, c + j, v16_load(sums + j * PANEL_ROWS));
    }
}

#endif

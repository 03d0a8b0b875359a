// Small float matrix products over v16: the inner loop of attention and of panels that hold floats.
// Each sum runs over k in order, in one chain per element, whatever the tile, so the tile never
// changes a bit. Compiled by avx2.c and avx512.c.
#ifndef KERNELS_CPU_MATRIX_V16_H
#define KERNELS_CPU_MATRIX_V16_H
#include "kernels/cpu/cpu.h"

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct madd { // c[n][16 columns] += a[n][k] b[k][16 columns]; leading dimensions in floats
    const float *a, *b;
    float *c;
    size_t lda, ldb, ldc;
    int k;
} madd;

V16 void madd_tile(const madd *m, int n, int columns) {
    v16 sum[V16_QUERIES * V16_COLUMNS];
    UNROLL for (int i = 0; i < n * columns; i++) sum[i] = v16_set1(0);
    const float *a = m->a, *b = m->b;
    for (int k = 0; k < m->k; k++, a++, b += m->ldb) {
        v16 v[V16_WIDE];
        UNROLL for (int j = 0; j < columns; j++) v[j] = v16_load(b + 16 * j);
        UNROLL for (int i = 0; i < n; i++) {
            v16 x = v16_set1(a[(size_t)i * m->lda]);
            UNROLL for (int j = 0; j < columns; j++) sum[i * columns + j] =
                v16_fma(x, v[j], sum[i * columns + j]);
        }
    }
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int j = 0; j < columns; j++) {
        float *c = m->c + (size_t)i * m->ldc + 16 * j;
        v16_store(c, v16_add(v16_load(c), sum[i * columns + j]));
    }
}

// The tiles by their rows; a tile with fewer rows can be wider.
static void madd_1(const madd *m, int n) {
    switch (n) {
    case 1:
        madd_tile(m, 1, 1);
        break;
    case 2:
        madd_tile(m, 2, 1);
        break;
    case 3:
        madd_tile(m, 3, 1);
        break;
    case 4:
        madd_tile(m, 4, 1);
        break;
    case 5:
        madd_tile(m, 5, 1);
        break;
    case 6:
        madd_tile(m, 6, 1);
        break;
    case 7:
        madd_tile(m, V16_QUERIES > 6 ? 7 : 6, 1);
        break;
    default:
        madd_tile(m, V16_QUERIES, 1);
    }
}

static void madd_more(const madd *m, int n) {
    switch (n) {
    case 1:
        madd_tile(m, 1, V16_WIDE);
        break;
    case 2:
        madd_tile(m, 2, V16_WIDE);
        break;
    case 3:
        madd_tile(m, 3, V16_WIDE);
        break;
    case 4:
        madd_tile(m, 4, V16_COLUMNS);
        break;
    case 5:
        madd_tile(m, 5, V16_COLUMNS);
        break;
    case 6:
        madd_tile(m, 6, V16_COLUMNS);
        break;
    case 7:
        madd_tile(m, V16_QUERIES > 6 ? 7 : 6, V16_COLUMNS);
        break;
    default:
        madd_tile(m, V16_QUERIES, V16_COLUMNS);
    }
}

// Any n and any number of groups of 16 columns.
static void madd_all(madd m, int n, int groups) {
    for (int i = 0; i < n; i += V16_QUERIES) {
        int rows = n - i < V16_QUERIES ? n - i : V16_QUERIES;
        madd t = m;
        t.a += (size_t)i * m.lda;
        t.c += (size_t)i * m.ldc;
        int g = 0;
        int columns = rows <= V16_FEW ? V16_WIDE : V16_COLUMNS;
        for (; g + columns <= groups; g += columns, t.b += 16 * columns, t.c += 16 * columns)
            madd_more(&t, rows);
        for (; g < groups; g++, t.b += 16, t.c += 16)
            madd_1(&t, rows);
    }
}

#endif

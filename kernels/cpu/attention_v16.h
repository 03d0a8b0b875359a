// Causal attention over the paged cache (online softmax: Milakov and Gimelshein 2018; tiles:
// FlashAttention, Dao 2022). The query rows and heads that share a KV head form one tile, so K and
// V are read and converted once for all of them. Keys go in blocks of 64 at fixed positions and in
// chunks of 512 that are summed apart and then merged in order: a row's bits depend on its own
// position and keys only.
#ifndef KERNELS_CPU_ATTENTION_V16_H
#define KERNELS_CPU_ATTENTION_V16_H
#include "kernels/cpu/matrix_v16.h"
#include "kernels/cpu/rows_v16.h"

enum { QUERIES = ATTENTION_QUERIES, KEYS = ATTENTION_KEYS };

typedef struct sums { // softmax state of n queries
    float *largest;   // [n]: score
    float *weight;    // [n][16]: sum of weights in 16 parts
    float *value;     // [n][width]: weighted V
} sums;

typedef struct tile { // one item's working memory
    const attention_item *it;
    int n, group, dim; // queries in the tile; query heads per KV head
    size_t width;      // dim rounded up to 16
    float *q;          // [QUERIES][width], scaled
    float *kt;         // [dim][KEYS]
    float *v;          // [KEYS][width]
    float *s;          // [QUERIES][KEYS]: scores, then weights
    sums chunk, total;
} tile;

static sums sums_at(float *p, int n, size_t width) {
    return (sums){
        .value = p, .weight = p + (size_t)n * width, .largest = p + (size_t)n * (width + 16)};
}

static void sums_clear(const sums *s, int n, size_t width) {
    for (int i = 0; i < n; i++)
        s->largest[i] = -INFINITY;
    memset(s->weight, 0, (size_t)n * 16 * sizeof(float));
    memset(s->value, 0, (size_t)n * width * sizeof(float));
}

static int query_position(const tile *t, int i) {
    return t->it->span->first + t->it->first_row + i / t->group;
}

static tile tile_open(const attention_item *it, float *scratch) {
    const attention_args *a = it->args;
    size_t width = attention_width(a->kv->head_dim),
           partial = attention_partial_floats(QUERIES, a->kv->head_dim);
    int group = a->n_heads / a->kv->n_kv_heads;
    tile t = {
        .it = it, .n = it->n_rows * group, .group = group, .dim = a->kv->head_dim, .width = width};
    t.total = sums_at(it->partial ? it->partial : scratch, t.n, width);
    t.chunk = sums_at(scratch + partial, t.n, width);
    t.q = scratch + 2 * partial;
    t.kt = t.q + QUERIES * width;
    t.v = t.kt + KEYS * width;
    t.s = t.v + KEYS * width;
    return t;
}

static void load_queries(const tile *t) {
    const attention_args *a = t->it->args;
    v16 scale = v16_set1(1 / sqrtf((float)t->dim));
    for (int i = 0; i < t->n; i++) {
        int row = t->it->span->row + t->it->first_row + i / t->group;
        const float *q =
            a->q + row * a->q_stride + (t->it->kv_head * t->group + i % t->group) * t->dim;
        for (int d = 0; d < t->dim; d += 16)
            v16_store(t->q + (size_t)i * t->width + d,
                      v16_mul(v16_load_n(q + d, lanes(t->dim - d)), scale));
    }
}

V16 v16 cache_load(const void *cache, kv_type type, size_t at, int n) {
    if (type == KV_F32)
        return v16_load_n((const float *)cache + at, n);
    const uint16_t *p = (const uint16_t *)cache + at;
    uint16_t part[16] = {0};
    if (n < 16)
        p = memcpy(part, p, (size_t)n * sizeof *part);
    return type == KV_F16 ? v16_load_f16(p) : v16_load_bf16(p);
}

// Keys key .. key + n - 1 as floats, K to kt and V to v, by runs of 16, which never cross a page.
// kt's columns past n hold anything; the scores there are masked later.
V16 void load_keys_of(const tile *t, int key, int n, kv_type type) {
    const kv_layer *kv = t->it->args->kv;
    for (int run = 0; run < n; run += 16) {
        size_t k = kv_key_index(kv, t->it->span, t->it->kv_head, key + run);
        size_t v = kv_value_index(kv, t->it->span, t->it->kv_head, key + run);
        for (int d = 0; d < t->dim; d++, k += (size_t)kv->page_tokens)
            v16_store(t->kt + (size_t)d * KEYS + run, cache_load(kv->k, type, k, 16));
        for (int i = run; i < run + lanes(n - run); i++, v += (size_t)t->dim)
            for (int d = 0; d < t->dim; d += 16)
                v16_store(t->v + (size_t)i * t->width + d,
                          cache_load(kv->v, type, v + (size_t)d, lanes(t->dim - d)));
    }
}

static void load_keys(const tile *t, int key, int n) {
    switch (t->it->args->kv->type) {
    case KV_F32:
        load_keys_of(t, key, n, KV_F32);
        break;
    case KV_F16:
        load_keys_of(t, key, n, KV_F16);
        break;
    case KV_BF16:
        load_keys_of(t, key, n, KV_BF16);
        break;
    }
}

// Turns query i's scores of the block into weights; `visible` of them (1 .. KEYS) are at or before
// its position.
static void soften(const tile *t, int i, int visible) {
    float *s = t->s + (size_t)i * KEYS, *value = t->chunk.value + (size_t)i * t->width;
    v16 x[KEYS / 16], top = v16_set1(-INFINITY);
    for (int k = 0; k < KEYS / 16; k++) {
        x[k] = v16_keep(v16_load(s + 16 * k), visible - 16 * k, -INFINITY);
        top = v16_max(top, x[k]);
    }
    float before = t->chunk.largest[i], block = v16_largest(top);
    float largest = before > block ? before : block;
    v16 m = v16_set1(largest), total = v16_load(t->chunk.weight + i * 16);
    if (largest != before) {
        v16 shrink = v16_exp(v16_sub(v16_set1(before), m));
        total = v16_mul(total, shrink);
        for (size_t d = 0; d < t->width; d += 16)
            v16_store(value + d, v16_mul(v16_load(value + d), shrink));
        t->chunk.largest[i] = largest;
    }
    for (int k = 0; k < KEYS / 16; k++) {
        x[k] = v16_exp(v16_sub(x[k], m));
        v16_store(s + 16 * k, x[k]);
        total = v16_add(total, x[k]);
    }
    v16_store(t->chunk.weight + i * 16, total);
}

// ---- few queries (decoding): K and V go straight from the cache into the sums, for the copy that
// many queries share would cost more than the sums. The order is madd_tile's, and so are the bits.
// wide: runs of 16 keys, or of 16 dimensions, at once, so that few queries have chains enough.

V16 void scores_of(const tile *t, int queries, int wide, int key, int n) {
    const kv_layer *kv = t->it->args->kv;
    for (int run = 0; run < n; run += 16 * wide) {
        const uint16_t *k[V16_WIDE];
        v16 sum[V16_QUERIES * V16_WIDE];
        UNROLL for (int i = 0; i < queries * wide; i++) sum[i] = v16_set1(0);
        UNROLL for (int j = 0; j < wide; j++) {
            int at = key + run + (run + 16 * j < n ? 16 * j : 0); // past the end: masked later
            k[j] = (const uint16_t *)kv->k + kv_key_index(kv, t->it->span, t->it->kv_head, at);
        }
        for (int d = 0; d < t->dim; d++)
            UNROLL for (int j = 0; j < wide; j++, k[j - 1] += kv->page_tokens) {
                v16 x = v16_load_f16(k[j]);
                UNROLL for (int i = 0; i < queries; i++) sum[i * wide + j] =
                    v16_fma(v16_set1(t->q[(size_t)i * t->width + (size_t)d]), x, sum[i * wide + j]);
            }
        UNROLL for (int i = 0; i < queries; i++) UNROLL for (int j = 0; j < wide; j++)
            v16_store(t->s + i * KEYS + run + 16 * j, sum[i * wide + j]);
    }
}

V16 void values_of(const tile *t, int queries, int wide, int key, int n) {
    const kv_layer *kv = t->it->args->kv;
    for (int d = 0; d < t->dim; d += 16 * wide) {
        v16 sum[V16_QUERIES * V16_WIDE];
        UNROLL for (int i = 0; i < queries * wide; i++) sum[i] = v16_set1(0);
        for (int run = 0; run < n; run += 16) {
            const uint16_t *v = (const uint16_t *)kv->v + d +
                                kv_value_index(kv, t->it->span, t->it->kv_head, key + run);
            for (int k = run; k < run + lanes(n - run); k++, v += t->dim)
                UNROLL for (int j = 0; j < wide; j++) {
                    v16 x = v16_load_f16(v + 16 * j);
                    UNROLL for (int i = 0; i < queries; i++) sum[i * wide + j] =
                        v16_fma(v16_set1(t->s[i * KEYS + k]), x, sum[i * wide + j]);
                }
        }
        UNROLL for (int i = 0; i < queries; i++) UNROLL for (int j = 0; j < wide; j++) {
            float *value = t->chunk.value + (size_t)i * t->width + d + 16 * j;
            v16_store(value, v16_add(v16_load(value), sum[i * wide + j]));
        }
    }
}

static bool is_few(const tile *t) {
    return t->n <= V16_QUERIES && t->dim % (16 * V16_WIDE) == 0 && t->it->args->kv->type == KV_F16;
}

#define EACH_FEW(fn)                                                                               \
    switch (t->n) {                                                                                \
    case 1:                                                                                        \
        fn(t, 1, V16_WIDE, key, n);                                                                \
        break;                                                                                     \
    case 2:                                                                                        \
        fn(t, 2, V16_WIDE, key, n);                                                                \
        break;                                                                                     \
    case 3:                                                                                        \
        fn(t, 3, V16_WIDE, key, n);                                                                \
        break;                                                                                     \
    case 4:                                                                                        \
        fn(t, 4, 1, key, n);                                                                       \
        break;                                                                                     \
    case 5:                                                                                        \
        fn(t, 5, 1, key, n);                                                                       \
        break;                                                                                     \
    case 6:                                                                                        \
        fn(t, 6, 1, key, n);                                                                       \
        break;                                                                                     \
    case 7:                                                                                        \
        fn(t, V16_QUERIES > 6 ? 7 : 6, 1, key, n);                                                 \
        break;                                                                                     \
    default:                                                                                       \
        fn(t, V16_QUERIES, 1, key, n);                                                             \
    }

static void few_scores(const tile *t, int key, int n) { EACH_FEW(scores_of) }
static void few_values(const tile *t, int key, int n) { EACH_FEW(values_of) }

// ---- many queries share a copy of K and V

static void many_scores(const tile *t, int key, int n) {
    load_keys(t, key, n);
    memset(t->s, 0, (size_t)t->n * KEYS * sizeof(float));
    madd_all((madd){.a = t->q,
                    .lda = t->width,
                    .b = t->kt,
                    .ldb = KEYS,
                    .c = t->s,
                    .ldc = KEYS,
                    .k = t->dim},
             t->n, KEYS / 16);
}

static void many_values(const tile *t, int n) {
    madd_all((madd){.a = t->s,
                    .lda = KEYS,
                    .b = t->v,
                    .ldb = t->width,
                    .c = t->chunk.value,
                    .ldc = t->width,
                    .k = n},
             t->n, (int)(t->width / 16));
}

static void attend_block(const tile *t, int key, int n) {
    bool few = is_few(t);
    if (few)
        few_scores(t, key, n);
    else
        many_scores(t, key, n);
    for (int i = 0; i < t->n; i++) {
        int visible = query_position(t, i) + 1 - key;
        if (visible > 0)
            soften(t, i, visible < KEYS ? visible : KEYS);
        else
            memset(t->s + (size_t)i * KEYS, 0, KEYS * sizeof(float));
    }
    if (few)
        few_values(t, key, n);
    else
        many_values(t, n);
}

// total += chunk. A query that sees no key of the chunk has a weight of e^-inf = 0 there.
static void merge(const sums *total, const sums *chunk, int n, size_t width) {
    for (int i = 0; i < n; i++) {
        float largest =
            total->largest[i] > chunk->largest[i] ? total->largest[i] : chunk->largest[i];
        v16 m = v16_set1(largest), x = v16_exp(v16_sub(v16_set1(total->largest[i]), m)),
            y = v16_exp(v16_sub(v16_set1(chunk->largest[i]), m));
        float *w = total->weight + i * 16, *v = total->value + (size_t)i * width;
        v16_store(w, v16_fma(v16_load(w), x, v16_mul(v16_load(chunk->weight + i * 16), y)));
        for (size_t d = 0; d < width; d += 16)
            v16_store(v + d, v16_fma(v16_load(v + d), x,
                                     v16_mul(v16_load(chunk->value + (size_t)i * width + d), y)));
        total->largest[i] = largest;
    }
}

static void write_rows(const tile *t) {
    const attention_args *a = t->it->args;
    for (int i = 0; i < t->n; i++) {
        int64_t row = t->it->span->row + t->it->first_row + i / t->group;
        float *y = a->y + (row * a->n_heads + t->it->kv_head * t->group + i % t->group) * t->dim;
        v16 scale = v16_set1(1 / v16_sum(v16_load(t->total.weight + i * 16)));
        for (int d = 0; d < t->dim; d += 16)
            v16_store_n(y + d, v16_mul(v16_load(t->total.value + (size_t)i * t->width + d), scale),
                        lanes(t->dim - d));
    }
}

static void attend(const attention_item *it, float *scratch) {
    tile t = tile_open(it, scratch);
    int keys = query_position(&t, t.n - 1) + 1; // the last query sees most
    load_queries(&t);
    sums_clear(&t.total, t.n, t.width);
    for (int chunk = it->first_chunk; chunk < it->last_chunk; chunk++) {
        int end = (chunk + 1) * CHUNK < keys ? (chunk + 1) * CHUNK : keys;
        sums_clear(&t.chunk, t.n, t.width);
        for (int key = chunk * CHUNK; key < end; key += KEYS)
            attend_block(&t, key, end - key < KEYS ? end - key : KEYS);
        merge(&t.total, &t.chunk, t.n, t.width);
    }
    if (!it->partial)
        write_rows(&t);
}

static void attend_merge(const attention_item *it, float *scratch) {
    attention_item whole = *it;
    whole.partial = NULL;
    tile t = tile_open(&whole, scratch);
    sums_clear(&t.total, t.n, t.width);
    for (int i = 0; i < it->last_chunk - it->first_chunk; i++) {
        sums part =
            sums_at(it->partial + (size_t)i * attention_partial_floats(t.n, t.dim), t.n, t.width);
        merge(&t.total, &part, t.n, t.width);
    }
    write_rows(&t);
}

#endif

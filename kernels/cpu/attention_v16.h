// Causal attention over the paged cache (online softmax: Milakov and Gimelshein 2018; tiles:
// FlashAttention, Dao 2022). The query rows and heads that share a KV head form one item, so K and
// V are read once for all of them, block by block of 64 keys at fixed positions; of a block, tiles
// of as many queries as registers hold take scores, weights and values in turn. Chunks of 512 keys
// are summed apart and then merged in order, and every sum runs over its dimensions or keys in
// order: a row's bits depend on its own position and keys only.
#ifndef KERNELS_CPU_ATTENTION_V16_H
#define KERNELS_CPU_ATTENTION_V16_H
#include "kernels/cpu/rows_v16.h"

enum { QUERIES = ATTENTION_QUERIES, KEYS = ATTENTION_KEYS, RUNS = KEYS / 16 };
enum { DIRECT = 32 }; // most queries that read f16 keys and values without a copy
_Static_assert(QUERIES % V16_QUERIES == 0, "packed queries fill whole tiles");

typedef struct sums { // softmax state of n queries
    float *base;      // [n]: weights are 2^(score - base)
    float *weight;    // [n][16]: sum of weights in 16 parts
    float *value;     // [n][width]: weighted V
} sums;

typedef struct work { // one item's working memory
    const attention_item *it;
    int n, group, dim;     // queries of the item; query heads per KV head
    int rows;              // queries of a tile
    size_t width;          // attention_width(dim)
    float *q;              // [tiles][dim][V16_QUERIES], scaled
    float *k;              // [RUNS][dim][16]: a block's K as floats
    float *v;              // [KEYS][width]
    float *s;              // [V16_QUERIES][KEYS]: a tile's scores, then weights
    float *scale;          // [2][KEYS]: of a block's keys and values; NULL where they have none
    int position[QUERIES]; // of each query
    sums chunk, total;
} work;

// Where a block's keys stand, in the cache or copied: by runs of 16, which never cross a page.
typedef struct block {
    int key, n;                    // the first key; keys, 1 .. KEYS
    const void *k[RUNS], *v[RUNS]; // past the end: the first run again, whose scores are masked
    size_t k_next, v_next; // elements from one dimension of K to the next, from one V to the next
    kv_type type;          // KV_F32 of a copy, else the cache's
    const struct block *next; // in the cache: what the tiles prefetch meanwhile
} block;

static sums sums_at(float *p, int n, size_t width) {
    return (sums){
        .value = p, .weight = p + (size_t)n * width, .base = p + (size_t)n * (width + 16)};
}

static void sums_clear(const sums *s, int n, size_t width) {
    for (int i = 0; i < n; i++)
        s->base[i] = -INFINITY;
    memset(s->weight, 0, (size_t)n * 16 * sizeof(float));
    memset(s->value, 0, (size_t)n * width * sizeof(float));
}

static work work_open(const attention_item *it, float *scratch) {
    const attention_args *a = it->args;
    size_t width = attention_width(a->kv->head_dim),
           partial = attention_partial_floats(QUERIES, a->kv->head_dim);
    int group = a->n_heads / a->kv->n_kv_heads, n = it->n_rows * group,
        tiles = (n + V16_QUERIES - 1) / V16_QUERIES;
    work w = {.it = it,
              .n = n,
              .group = group,
              .dim = a->kv->head_dim,
              .rows = (n + tiles - 1) / tiles,
              .width = width};
    for (int i = 0; i < n; i++)
        w.position[i] = it->span->first + it->first_row + i / group;
    w.total = sums_at(it->partial ? it->partial : scratch, n, width);
    w.chunk = sums_at(scratch + partial, n, width);
    w.q = scratch + 2 * partial;
    w.k = w.q + QUERIES * width;
    w.v = w.k + KEYS * width;
    w.s = w.v + KEYS * width;
    w.scale = a->kv->type == KV_Q8 ? w.s + QUERIES * KEYS : NULL;
    return w;
}

// With log2(e) in the scale, weights are powers of 2.
static void load_queries(const work *w) {
    const attention_args *a = w->it->args;
    float scale = 1.44269504f / sqrtf((float)w->dim);
    for (int i = 0; i < w->n; i++) {
        int row = w->it->span->row + w->it->first_row + i / w->group;
        const float *q =
            a->q + row * a->q_stride + (w->it->kv_head * w->group + i % w->group) * w->dim;
        float *to = w->q + i / w->rows * w->dim * V16_QUERIES + i % w->rows;
        for (int d = 0; d < w->dim; d++)
            to[d * V16_QUERIES] = q[d] * scale;
    }
}

// ---- a block's keys

V16 size_t value_bytes(kv_type type) { return type == KV_F32 ? 4 : type == KV_Q8 ? 1 : 2; }

static block block_at(const work *w, int key, int n) {
    const kv_layer *kv = w->it->args->kv;
    size_t bytes = value_bytes(kv->type);
    block b = {.key = key,
               .n = n,
               .k_next = (size_t)kv->page_tokens,
               .v_next = (size_t)w->dim,
               .type = kv->type};
    for (int run = 0; run < RUNS; run++) {
        int at = key + (16 * run < n ? 16 * run : 0);
        b.k[run] = (const char *)kv->k + kv_key_index(kv, w->it->span, w->it->kv_head, at) * bytes;
        b.v[run] =
            (const char *)kv->v + kv_value_index(kv, w->it->span, w->it->kv_head, at) * bytes;
    }
    return b;
}

// Scores take the keys' scales and weights the values', so the sums run over the bytes themselves.
static void load_scales(const work *w, const block *b) {
    const kv_layer *kv = w->it->args->kv;
    for (int run = 0; run < RUNS; run++) { // past the end: weights are 0 there
        int key = b->key + (16 * run < b->n ? 16 * run : 0);
        size_t at = kv_scale_index(kv, w->it->span, w->it->kv_head, key);
        v16_store(w->scale + 16 * run, v16_load_bf16((const uint16_t *)kv->k + at));
        v16_store(w->scale + KEYS + 16 * run, v16_load_bf16((const uint16_t *)kv->v + at));
    }
}

V16 v16 read16(const void *p, kv_type type, size_t at) {
    switch (type) {
    case KV_F32:
        return v16_load((const float *)p + at);
    case KV_F16:
        return v16_load_f16((const uint16_t *)p + at);
    case KV_BF16:
        return v16_load_bf16((const uint16_t *)p + at);
    default:
        return v16_load_i8((const int8_t *)p + at);
    }
}

// n values, zeros behind.
V16 v16 read_n(const void *p, kv_type type, size_t at, int n) {
    size_t bytes = value_bytes(type);
    char some[64] = {0};
    if (n >= 16)
        return read16(p, type, at);
    memcpy(some, (const char *)p + at * bytes, (size_t)(n > 0 ? n : 0) * bytes);
    return read16(some, type, 0);
}

V16 void load_keys_of(const work *w, const block *b, kv_type type) {
    for (int run = 0; 16 * run < b->n; run++) {
        float *k = w->k + run * w->dim * 16, *v = w->v + (size_t)(16 * run) * w->width;
        for (int d = 0; d < w->dim; d++)
            v16_store(k + 16 * d, read16(b->k[run], type, (size_t)d * b->k_next));
        for (int i = 0; i < lanes(b->n - 16 * run); i++, v += w->width)
            for (int d = 0; d < (int)w->width; d += 16)
                v16_store(v + d, read_n(b->v[run], type, (size_t)i * b->v_next + (size_t)d,
                                        lanes(w->dim - d)));
    }
}

// Turns b into a copy in floats.
static void load_keys(const work *w, block *b) {
    switch (b->type) {
    case KV_F32:
        load_keys_of(w, b, KV_F32);
        break;
    case KV_F16:
        load_keys_of(w, b, KV_F16);
        break;
    case KV_BF16:
        load_keys_of(w, b, KV_BF16);
        break;
    default:
        load_keys_of(w, b, KV_Q8);
    }
    for (int run = 0; run < RUNS; run++) {
        int at = 16 * run < b->n ? run : 0;
        b->k[run] = w->k + at * w->dim * 16;
        b->v[run] = w->v + (size_t)(16 * at) * w->width;
    }
    b->k_next = 16;
    b->v_next = w->width;
    b->type = KV_F32;
}

// Few queries (decoding, short parts of a prompt) read the cache itself: the copy would cost more
// than converting once for every tile.
static bool is_direct(const work *w) {
    kv_type type = w->it->args->kv->type;
    return (size_t)w->dim == w->width && (type == KV_F32 || w->n <= DIRECT);
}

// ---- tiles: n queries, `columns` times 16 keys or dimensions at once. Meanwhile the next block
// comes from memory, a line here and there, since the hardware's own prefetching ends at pages; it
// stands like this one unless this one is a copy.

// Scores of the block's first keys, `seen` rounded up.
V16 void tile_scores(const work *w, const block *b, const float *q, int seen, int n, int columns,
                     kv_type type) {
    for (int run = 0; 16 * run < seen; run += columns) {
        const float *a = q;
        v16 sum[V16_TILE];
        UNROLL for (int i = 0; i < n * columns; i++) sum[i] = v16_set1(0);
        size_t at = 0, ahead = 0, step = b->next->k_next * value_bytes(b->next->type);
        for (int d = 0; d < w->dim; d++, at += b->k_next, ahead += step, a += V16_QUERIES) {
            v16 x[V16_WIDE];
            UNROLL for (int j = 0; j < columns; j++) {
                x[j] = read16(b->k[run + j], type, at);
                size_t there = type == KV_F32 ? ahead : at * value_bytes(type);
                _mm_prefetch((const char *)b->next->k[run + j] + there, _MM_HINT_T1);
            }
            UNROLL for (int i = 0; i < n; i++) {
                v16 y = v16_set1(a[i]);
                UNROLL for (int j = 0; j < columns; j++) sum[i * columns + j] =
                    v16_fma(y, x[j], sum[i * columns + j]);
            }
        }
        UNROLL for (int i = 0; i < n; i++) UNROLL for (int j = 0; j < columns; j++)
            v16_store(w->s + i * KEYS + 16 * (run + j), sum[i * columns + j]);
    }
}

// value[n][width] += weights of the first `seen` keys times V.
V16 void tile_values(const work *w, const block *b, float *value, int seen, int n, int columns,
                     kv_type type) {
    for (size_t d = 0; d < w->width; d += (size_t)(16 * columns)) {
        v16 sum[V16_TILE];
        UNROLL for (int i = 0; i < n * columns; i++) sum[i] = v16_set1(0);
        for (int run = 0; 16 * run < seen; run++) {
            const float *a = w->s + 16 * run, *end = a + lanes(seen - 16 * run);
            size_t bytes = value_bytes(b->next->type), ahead = d * bytes,
                   step = b->next->v_next * bytes;
            for (size_t at = d; a < end; a++, at += b->v_next, ahead += step) {
                v16 x[V16_WIDE];
                UNROLL for (int j = 0; j < columns; j++) {
                    x[j] = read16(b->v[run], type, at + (size_t)(16 * j));
                    size_t there = type == KV_F32 ? ahead : at * value_bytes(type);
                    _mm_prefetch((const char *)b->next->v[run] + there + 32 * j, _MM_HINT_T1);
                }
                UNROLL for (int i = 0; i < n; i++) {
                    v16 y = v16_set1(a[i * KEYS]);
                    UNROLL for (int j = 0; j < columns; j++) sum[i * columns + j] =
                        v16_fma(y, x[j], sum[i * columns + j]);
                }
            }
        }
        UNROLL for (int i = 0; i < n; i++) UNROLL for (int j = 0; j < columns; j++) {
            float *c = value + (size_t)i * w->width + d + 16 * j;
            v16_store(c, v16_add(v16_load(c), sum[i * columns + j]));
        }
    }
}

#define OF(i, type)                                                                                \
    case i:                                                                                        \
        FN(w, b, at, seen, i, i <= V16_FEW ? V16_WIDE : V16_COLUMNS, type);                        \
        break;
#define OF_F32(i) OF(i, KV_F32)
#define OF_F16(i) OF(i, KV_F16)
#define OF_BF16(i) OF(i, KV_BF16)
#define OF_Q8(i) OF(i, KV_Q8)
#define EACH_TILE                                                                                  \
    if (b->type == KV_F32)                                                                         \
        switch (n) { V16_EACH_QUERIES(OF_F32) }                                                    \
    else if (b->type == KV_F16)                                                                    \
        switch (n) { V16_EACH_QUERIES(OF_F16) }                                                    \
    else if (b->type == KV_BF16)                                                                   \
        switch (n) { V16_EACH_QUERIES(OF_BF16) }                                                   \
    else                                                                                           \
        switch (n) { V16_EACH_QUERIES(OF_Q8) }

#define FN tile_scores
static void scores(const work *w, const block *b, const float *at, int seen, int n) { EACH_TILE }
#undef FN
#define FN tile_values
static void values(const work *w, const block *b, float *at, int seen, int n) { EACH_TILE }
#undef FN

// ---- softmax

// Turns query i's scores s[KEYS] of a block into weights; the first `visible`, at least one, are at
// or before its position. The base follows the largest score only when that is far above: weights
// up to 2^SLACK cost no precision, and a new base costs a pass over the sums.
// scale: NULL or work's.
V16 void soften(const work *w, float *s, int i, int visible, bool masked, const float *scale) {
    enum { SLACK = 8 };
    v16 x[RUNS], top = v16_set1(-INFINITY);
    UNROLL for (int k = 0; k < RUNS; k++) {
        x[k] = v16_load(s + 16 * k);
        if (scale)
            x[k] = v16_mul(x[k], v16_load(scale + 16 * k));
        if (masked)
            x[k] = v16_keep(x[k], visible - 16 * k, -INFINITY);
        top = v16_max(top, x[k]);
    }
    v16 base = v16_set1(w->chunk.base[i]), total = v16_load(w->chunk.weight + i * 16);
    if (v16_any_above(top, v16_add(base, v16_set1(SLACK)))) {
        float *value = w->chunk.value + (size_t)i * w->width;
        float largest = v16_largest(top);
        v16 shrink = v16_exp2(v16_sub(base, v16_set1(largest)));
        total = v16_mul(total, shrink);
        for (size_t d = 0; d < w->width; d += 16)
            v16_store(value + d, v16_mul(v16_load(value + d), shrink));
        w->chunk.base[i] = largest;
        base = v16_set1(largest);
    }
    UNROLL for (int k = 0; k < RUNS; k++) {
        x[k] = v16_exp2(v16_sub(x[k], base));
        if (masked)
            x[k] = v16_keep(x[k], visible - 16 * k, 0);
        v16_store(s + 16 * k, scale ? v16_mul(x[k], v16_load(scale + KEYS + 16 * k)) : x[k]);
        total = v16_add(total, x[k]);
    }
    v16_store(w->chunk.weight + i * 16, total);
}

static void soften_tile(const work *w, const block *b, int first, int n) {
    float *s = w->s;
    for (int i = first; i < first + n; i++, s += KEYS) {
        int visible = w->position[i] + 1 - b->key;
        if (visible >= KEYS && !w->scale)
            soften(w, s, i, visible, false, NULL);
        else if (visible >= KEYS)
            soften(w, s, i, visible, false, w->scale);
        else if (visible > 0 && !w->scale)
            soften(w, s, i, visible, true, NULL);
        else if (visible > 0)
            soften(w, s, i, visible, true, w->scale);
        else
            memset(s, 0, KEYS * sizeof *s);
    }
}

static void attend_block(const work *w, int key, int end) {
    block b = block_at(w, key, end - key < KEYS ? end - key : KEYS);
    if (w->scale)
        load_scales(w, &b);
    int ahead = key + KEYS < end ? key + KEYS : key;
    block next = block_at(w, ahead, end - ahead < KEYS ? end - ahead : KEYS);
    b.next = &next;
    if (!is_direct(w))
        load_keys(w, &b);
    for (int i = 0; i < w->n; i += w->rows) {
        int n = w->n - i < w->rows ? w->n - i : w->rows,
            seen = w->position[i + n - 1] + 1 - key; // by the tile's last query
        if (seen <= 0)
            continue;
        seen = seen < b.n ? seen : b.n;
        scores(w, &b, w->q + i / w->rows * w->dim * V16_QUERIES, seen, n);
        soften_tile(w, &b, i, n);
        values(w, &b, w->chunk.value + (size_t)i * w->width, seen, n);
    }
}

// total += chunk.
static void merge(const sums *total, const sums *chunk, int n, size_t width) {
    for (int i = 0; i < n; i++) {
        float largest = total->base[i] > chunk->base[i] ? total->base[i] : chunk->base[i];
        v16 m = v16_set1(largest > -INFINITY ? largest : 0), // no key seen yet: all sums are 0
            x = v16_exp2(v16_sub(v16_set1(total->base[i]), m)),
            y = v16_exp2(v16_sub(v16_set1(chunk->base[i]), m));
        float *w = total->weight + i * 16, *v = total->value + (size_t)i * width;
        v16_store(w, v16_fma(v16_load(w), x, v16_mul(v16_load(chunk->weight + i * 16), y)));
        for (size_t d = 0; d < width; d += 16)
            v16_store(v + d, v16_fma(v16_load(v + d), x,
                                     v16_mul(v16_load(chunk->value + (size_t)i * width + d), y)));
        total->base[i] = largest;
    }
}

static void write_rows(const work *w) {
    const attention_args *a = w->it->args;
    for (int i = 0; i < w->n; i++) {
        int64_t row = w->it->span->row + w->it->first_row + i / w->group;
        float *y = a->y + (row * a->n_heads + w->it->kv_head * w->group + i % w->group) * w->dim;
        v16 scale = v16_set1(1 / v16_sum(v16_load(w->total.weight + i * 16)));
        for (int d = 0; d < w->dim; d += 16)
            v16_store_n(y + d, v16_mul(v16_load(w->total.value + (size_t)i * w->width + d), scale),
                        lanes(w->dim - d));
    }
}

static void attend(const attention_item *it, float *scratch) {
    work w = work_open(it, scratch);
    int keys = w.position[w.n - 1] + 1; // the last query sees most
    load_queries(&w);
    sums_clear(&w.total, w.n, w.width);
    for (int chunk = it->first_chunk; chunk < it->last_chunk; chunk++) {
        int end = (chunk + 1) * CHUNK < keys ? (chunk + 1) * CHUNK : keys;
        sums_clear(&w.chunk, w.n, w.width);
        for (int key = chunk * CHUNK; key < end; key += KEYS)
            attend_block(&w, key, end);
        merge(&w.total, &w.chunk, w.n, w.width);
    }
    if (!it->partial)
        write_rows(&w);
}

static void attend_merge(const attention_item *it, float *scratch) {
    attention_item whole = *it;
    whole.partial = NULL;
    work w = work_open(&whole, scratch);
    sums_clear(&w.total, w.n, w.width);
    for (int i = 0; i < it->last_chunk - it->first_chunk; i++) {
        sums part =
            sums_at(it->partial + (size_t)i * attention_partial_floats(w.n, w.dim), w.n, w.width);
        merge(&w.total, &part, w.n, w.width);
    }
    write_rows(&w);
}

#endif

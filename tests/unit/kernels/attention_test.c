// Rotation, the paged cache and attention of the CPU backends against the reference, on ragged
// batches whose pages are scrambled and whose unused positions hold NaN, so that a key read from
// the wrong page or past the end shows.
#include "tests/kernels/support.h"
#include "kernels/kv_index.h"

typedef struct scene { // a ragged batch and its cache
    kv_layer kv;
    int n_heads, n_spans, n_rows, dim_all;
    seq_span spans[5];
    int32_t *pages[5];
    float *qkv;         // [n_rows, dim_all]
    size_t cache_bytes; // of keys, and of values
} scene;

static void cache_set(void *cache, kv_type t, size_t i, float v) {
    if (t == KV_F32)
        ((float *)cache)[i] = v;
    else if (t == KV_Q8)
        ((int8_t *)cache)[i] = (int8_t)(v * 63);
    else
        ((uint16_t *)cache)[i] = t == KV_F16 ? f32_to_f16(v) : f32_to_bf16(v);
}

static float cache_value(const void *cache, kv_type t, size_t i) {
    return t == KV_F32   ? ((const float *)cache)[i]
           : t == KV_Q8  ? ((const int8_t *)cache)[i]
           : t == KV_F16 ? f16_to_f32(((const uint16_t *)cache)[i])
                         : bf16_to_f32(((const uint16_t *)cache)[i]);
}

// Every value NaN: all bits, as a number of any type and as a scale.
static void *new_cache(const scene *s) {
    return memset(malloc(s->cache_bytes), 0xff, s->cache_bytes);
}

// Random keys and values up to 2.
static void fill_position(const kv_layer *kv, const seq_span *p, int h, int t) {
    for (int d = 0; d < kv->head_dim; d++) {
        size_t k = kv_key_index(kv, p, h, t) + (size_t)(d * kv->page_tokens);
        cache_set(kv->k, kv->type, k, random_float(2));
        cache_set(kv->v, kv->type, kv_value_index(kv, p, h, t) + (size_t)d, random_float(2));
    }
    for (int i = 0; kv->type == KV_Q8 && i < 2; i++)
        ((uint16_t *)(i ? kv->v : kv->k))[kv_scale_index(kv, p, h, t)] =
            f32_to_bf16((1 + random_float(0.9f)) / 120);
}

// Gives every sequence its pages, in random order, and fills positions before `first` with random
// keys and values.
static void make_cache(scene *s) {
    kv_layer *kv = &s->kv;
    int total = 0, used = 0;
    for (int i = 0; i < s->n_spans; i++) {
        seq_span *p = &s->spans[i];
        p->n_pages = (p->first + p->n_rows + kv->page_tokens - 1) / kv->page_tokens;
        total += p->n_pages;
    }
    kv->n_pages = total + 3;
    s->cache_bytes = (size_t)(kv->n_pages * kv->n_kv_heads) *
                     kv_plane_bytes(kv->type, kv->page_tokens, kv->head_dim);
    kv->k = new_cache(s);
    kv->v = new_cache(s);
    int32_t *order = malloc((size_t)kv->n_pages * sizeof *order);
    for (int i = 0; i < kv->n_pages; i++) {
        int j = random_int(0, i);
        order[i] = order[j];
        order[j] = i;
    }
    for (int i = 0; i < s->n_spans; i++) {
        seq_span *p = &s->spans[i];
        s->pages[i] = malloc((size_t)p->n_pages * sizeof(int32_t));
        for (int j = 0; j < p->n_pages; j++)
            s->pages[i][j] = order[used++];
        p->pages = s->pages[i];
        for (int t = 0; t < p->first; t++)
            for (int h = 0; h < kv->n_kv_heads; h++)
                fill_position(kv, p, h, t);
    }
    free(order);
}

static scene new_scene(int head_dim, int n_kv_heads, int group, kv_type type, int page_tokens) {
    return (scene){.kv = {.type = type,
                          .n_kv_heads = n_kv_heads,
                          .page_tokens = page_tokens,
                          .head_dim = head_dim},
                   .n_heads = n_kv_heads * group,
                   .dim_all = (n_kv_heads * group + 2 * n_kv_heads) * head_dim};
}

static void add_span(scene *s, int first, int n_rows) {
    s->spans[s->n_spans++] = (seq_span){.row = s->n_rows, .n_rows = n_rows, .first = first};
    s->n_rows += n_rows;
}

static void finish_scene(scene *s) {
    make_cache(s);
    s->qkv = random_floats((size_t)(s->n_rows * s->dim_all), 2);
}

static void release(scene *s) {
    for (int i = 0; i < s->n_spans; i++)
        free(s->pages[i]);
    free(s->kv.k);
    free(s->kv.v);
    free(s->qkv);
}

typedef struct rope_options {
    bool interleaved, norm;
    float attn_scale;
} rope_options;

typedef struct outcome {
    float *qkv, *y;
    void *k, *v;
} outcome;

// Runs rope_kv and attention on copies of the scene's activations and cache.
static outcome play(ops *o, const scene *s, const rope_options *opt) {
    size_t n = (size_t)(s->n_rows * s->dim_all), bytes = s->cache_bytes;
    int hd = s->kv.head_dim, width = s->n_heads * hd;
    outcome r = {malloc(n * 4), malloc((size_t)(s->n_rows * width) * 4), malloc(bytes),
                 malloc(bytes)};
    memcpy(r.qkv, s->qkv, n * 4);
    memcpy(r.k, s->kv.k, bytes);
    memcpy(r.v, s->kv.v, bytes);
    kv_layer kv = s->kv;
    kv.k = r.k;
    kv.v = r.v;
    float inv_freq[128], gain[256];
    for (int i = 0; i < hd / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / (float)hd);
    for (int i = 0; i < hd; i++)
        gain[i] = 0.5f + (float)(i % 7) * 0.2f;
    o->rope_kv(o, &(rope_kv_args){.qkv = r.qkv,
                                  .stride = s->dim_all,
                                  .n_heads = s->n_heads,
                                  .interleaved = opt->interleaved,
                                  .inv_freq = inv_freq,
                                  .attn_scale = opt->attn_scale,
                                  .q_gain = opt->norm ? gain : NULL,
                                  .k_gain = opt->norm ? gain : NULL,
                                  .eps = 1e-6f,
                                  .kv = &kv,
                                  .spans = s->spans,
                                  .n_spans = s->n_spans});
    o->attention(o, &(attention_args){.q = r.qkv,
                                      .y = r.y,
                                      .q_stride = s->dim_all,
                                      .n_heads = s->n_heads,
                                      .kv = &kv,
                                      .spans = s->spans,
                                      .n_spans = s->n_spans});
    return r;
}

static void outcome_free(outcome *r) {
    free(r->qkv);
    free(r->y);
    free(r->k);
    free(r->v);
}

static scene random_scene(int i) {
    static const int dims[] = {64, 128, 64, 128, 40, 72, 8, 256};
    scene s = new_scene(dims[i % 8], random_int(1, 3), i % 8 + 1, (kv_type)((i + i / 8) % KV_TYPES),
                        (int[]){16, 32, 48, 16}[random_int(0, 3)]);
    for (int n = random_int(1, 5); n > 0; n--)
        add_span(&s, random_int(0, 3) ? random_int(0, 90) : 0,
                 random_int(0, 1) ? 1 : random_int(1, 40));
    if (i % 6 == 5) // more than a chunk
        s.spans[0].first = 500 + random_int(0, 700);
    finish_scene(&s);
    return s;
}

static void random_batches_agree_with_the_reference(void **state) {
    (void)state;
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < ROUNDS * 3; i++) {
            scene s = random_scene(i);
            rope_options opt = {i & 1, i & 2, i & 4 ? 1.0f : 1.25f};
            outcome y = play(o, &s, &opt), want = play(ref, &s, &opt);
            size_t n = (size_t)(s.n_rows * s.n_heads * s.kv.head_dim);
            assert_within(largest_error(y.qkv, want.qkv, (size_t)(s.n_rows * s.dim_all)), 1e-6);
            assert_within(sqrt(nmse(y.y, want.y, n)), s.kv.type == KV_F32 ? 2e-6 : 4e-3);
            assert_within(largest_error(y.y, want.y, n), s.kv.type == KV_F32 ? 1e-5 : 1e-2);
            outcome_free(&y);
            outcome_free(&want);
            release(&s);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

// Both backends on the very same cache and queries, so that only attention's own arithmetic
// differs.
static void attention_alone_is_close_in_every_cache_type(void **state) {
    (void)state;
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < ROUNDS; i++) {
            scene s = random_scene(i);
            outcome base = play(ref, &s, &(rope_options){false, false, 1});
            kv_layer kv = s.kv;
            kv.k = base.k;
            kv.v = base.v;
            size_t n = (size_t)(s.n_rows * s.n_heads * s.kv.head_dim);
            float *y = malloc(n * sizeof *y);
            o->attention(
                o, &(attention_args){base.qkv, y, s.dim_all, s.n_heads, &kv, s.spans, s.n_spans});
            assert_within(sqrt(nmse(y, base.y, n)), 2e-6);
            free(y);
            outcome_free(&base);
            release(&s);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

// Dimensions of keys that differ by more than rounding the other way, over all positions; and
// positions of no sequence that anything was written to.
static int wrong_keys(const scene *s, const void *got, const void *want) {
    static const double step[] = {
        [KV_F32] = 3e-6, [KV_F16] = 2e-3, [KV_BF16] = 2e-2, [KV_Q8] = 1.5};
    const kv_layer *kv = &s->kv;
    int wrong = 0;
    for (int page = 0; page < kv->n_pages; page++) {
        seq_span p = {.pages = (int32_t[]){page}};
        for (int i = 0; i < kv->n_kv_heads * kv->page_tokens; i++) {
            int h = i / kv->page_tokens, t = i % kv->page_tokens;
            size_t scale = kv_scale_index(kv, &p, h, t), at = kv_key_index(kv, &p, h, t);
            double a = kv->type == KV_Q8 ? bf16_to_f32(((const uint16_t *)got)[scale]) : 1,
                   b = kv->type == KV_Q8 ? bf16_to_f32(((const uint16_t *)want)[scale]) : 1;
            for (int d = 0; d < kv->head_dim; d++, at += (size_t)kv->page_tokens) {
                double x = a * cache_value(got, kv->type, at),
                       y = b * cache_value(want, kv->type, at),
                       most = kv->type == KV_Q8 ? b : fabs(y) + 0.1;
                wrong += isnan(x) != isnan(y) || fabs(x - y) > step[kv->type] * most;
            }
        }
    }
    return wrong;
}

static void the_cache_gets_rounded_keys_and_values_where_the_pages_say(void **state) {
    (void)state;
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < ROUNDS; i++) {
            scene s = random_scene(i);
            outcome y = play(o, &s, &(rope_options){true, false, 1}),
                    want = play(ref, &s, &(rope_options){true, false, 1});
            assert_memory_equal(y.v, want.v, s.cache_bytes); // values are copied: the same bits
            assert_int_equal(wrong_keys(&s, y.k, want.k), 0);
            outcome_free(&y);
            outcome_free(&want);
            release(&s);
        }
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

// A query that sees two keys: the second's share is 1 / (1 + e^-t) for scores that differ by t.
static void shares_follow_the_exponential(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        for (int i = 0; o && i <= 2000; i++) {
            float t = (float)(i - 1000) * 0.086f, // up to 86: where the share is a normal float
                q[64] = {8}, k[16 * 64] = {0}, v[16 * 64] = {0}, y[64]; // 8: the scale's inverse
            k[1] = t;
            v[64] = 1;
            kv_layer kv = {k, v, KV_F32, 1, 1, 16, 64};
            seq_span span = {0, 1, 1, (int32_t[]){0}, 1};
            o->attention(o, &(attention_args){q, y, 64, 1, &kv, &span, 1});
            double want = 1 / (1 + exp(-(double)t));
            assert_within(fabs(y[0] - want) / want, t > -8 ? 2e-6 : 2e-5); // t itself is rounded
        }
        if (o)
            o->close(o);
    }
}

// Each block's scores stand 64 above the last one's: weights taken from an old base would overflow.
static void scores_may_rise_far_from_block_to_block(void **state) {
    (void)state;
    enum { N = 400 };
    static float k[N * 64], v[N * 64];
    int32_t pages[N / 16];
    for (int i = 0; i < N; i++) { // the score is the position, in units of 1
        pages[i / 16] = i / 16;
        k[i / 16 * 16 * 64 + i % 16] = (float)i;
        v[i * 64] = (float)(i % 7);
    }
    float q[64] = {8}, y[64], want[64];
    kv_layer kv = {k, v, KV_F32, N / 16, 1, 16, 64};
    seq_span span = {0, 1, N - 1, pages, N / 16};
    ops *ref = open_ref();
    ref->attention(ref, &(attention_args){q, want, 64, 1, &kv, &span, 1});
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        if (!o)
            continue;
        o->attention(o, &(attention_args){q, y, 64, 1, &kv, &span, 1});
        assert_within(fabs(y[0] - want[0]), 2e-5);
        o->close(o);
    }
    ref->close(ref);
}

// One row of the scene by itself: the same sequence, the same position.
static float *alone(ops *o, const scene *s, const outcome *all, int span, int i) {
    kv_layer kv = s->kv;
    kv.k = all->k;
    kv.v = all->v;
    const seq_span *p = &s->spans[span];
    seq_span one = {0, 1, p->first + i, p->pages, p->n_pages};
    float *y = malloc((size_t)(s->n_heads * s->kv.head_dim) * sizeof *y);
    o->attention(o, &(attention_args){all->qkv + (p->row + i) * s->dim_all, y, s->dim_all,
                                      s->n_heads, &kv, &one, 1});
    return y;
}

static void a_row_alone_gives_the_bits_it_gives_in_company(void **state) {
    (void)state;
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < ROUNDS; i++) {
            scene s = random_scene(i);
            outcome all = play(o, &s, &(rope_options){false, false, 1});
            int width = s.n_heads * s.kv.head_dim;
            for (int k = 0; k < s.n_spans; k++)
                for (int j = 0; j < s.spans[k].n_rows; j += random_int(1, 5)) {
                    float *y = alone(o, &s, &all, k, j);
                    assert_memory_equal(y, all.y + (s.spans[k].row + j) * width,
                                        (size_t)width * sizeof *y);
                    free(y);
                }
            outcome_free(&all);
            release(&s);
        }
        if (o)
            o->close(o);
    }
}

static void thread_count_and_instruction_set_change_no_bit(void **state) {
    (void)state;
    for (int i = 0; i < ROUNDS; i++) {
        scene s = i == 0   ? new_scene(64, 1, 3, KV_F16, 16)
                  : i == 1 ? new_scene(64, 3, 3, KV_F16, 16)
                           : random_scene(i);
        if (i == 0) { // one long sequence that decodes: split over chunks when there are threads
            add_span(&s, 1777, 1);
            finish_scene(&s);
        } else if (i == 1) { // a part of a long prompt is split, the sequences beside it are not
            add_span(&s, 300, 1);
            add_span(&s, 1777, 4);
            add_span(&s, 600, 1);
            finish_scene(&s);
        }
        outcome first = {0};
        for (int b = 0; b < N_BACKENDS * 3; b++) {
            ops *o = open_backend(b / 3, b % 3 + 1);
            if (!o)
                continue;
            outcome y = play(o, &s, &(rope_options){i & 1, true, 1});
            if (first.y) {
                assert_memory_equal(y.y, first.y,
                                    (size_t)(s.n_rows * s.n_heads * s.kv.head_dim) * 4);
                assert_memory_equal(y.k, first.k, s.cache_bytes);
                outcome_free(&y);
            } else {
                first = y;
            }
            o->close(o);
        }
        if (first.y)
            outcome_free(&first);
        release(&s);
    }
}

// Positions far into a long context, where a float angle would have lost its digits.
static void angles_stay_exact_at_far_positions(void **state) {
    (void)state;
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 1);
        if (!o)
            continue;
        int32_t pages[131072 / 16] = {0}; // all the one page
        float k[16 * 64], v[16 * 64], qkv[3 * 64], want[3 * 64], inv_freq[32];
        for (int i = 0; i < 32; i++)
            inv_freq[i] = powf(1e6f, -(float)i / 32);
        for (int position = 0; position < 131072; position += 7919) {
            for (int i = 0; i < 3 * 64; i++)
                qkv[i] = want[i] = random_float(1);
            kv_layer kv = {k, v, KV_F32, 1, 1, 16, 64};
            seq_span span = {0, 1, position, pages, 131072 / 16};
            rope_kv_args a = {.qkv = qkv,
                              .stride = 192,
                              .n_heads = 1,
                              .inv_freq = inv_freq,
                              .attn_scale = 1,
                              .kv = &kv,
                              .spans = &span,
                              .n_spans = 1};
            o->rope_kv(o, &a);
            a.qkv = want;
            ref->rope_kv(ref, &a);
            assert_within(largest_error(qkv, want, 192), 1e-6);
        }
        o->close(o);
    }
    ref->close(ref);
}

// ---- KV_Q8

// Writes qkv (one query head, one KV head) at a position of a sequence on pages 2, 0, 1, unrotated,
// and attends.
static void put_and_attend(ops *o, const kv_layer *kv, int position, const float *qkv, float *y) {
    static const float no_angle[128];
    static const int32_t pages[] = {2, 0, 1};
    float row[3 * 256];
    seq_span span = {0, 1, position, pages, 3};
    memcpy(row, qkv, (size_t)kv->head_dim * 3 * sizeof *row);
    o->rope_kv(o, &(rope_kv_args){.qkv = row,
                                  .stride = 3 * kv->head_dim,
                                  .n_heads = 1,
                                  .inv_freq = no_angle,
                                  .attn_scale = 1,
                                  .kv = kv,
                                  .spans = &span,
                                  .n_spans = 1});
    o->attention(o, &(attention_args){row, y, 3 * kv->head_dim, 1, kv, &span, 1});
}

// Where a value stands is counted out here, not asked of kv_index.h.
static void bytes_and_scales_stand_as_counted_by_hand(void **state) {
    (void)state;
    enum { DIM = 8, PLANE = 16 * DIM + 16 * 2 }; // of a page
    static const float qkv[3 * DIM] = {
        [0] = 1, // q; k: scale 1; v: scale 1/4
        [8] = 127,  [9] = -127, [10] = 2.5f, [11] = 3.5f,    [12] = -0.4f,  [13] = 0.6f,
        [14] = -64, [15] = 0,   [16] = 1,    [17] = -31.75f, [18] = 0.125f, [19] = 0.375f,
        [20] = 0,   [21] = -1,  [22] = 2,    [23] = 3};
    static const int8_t key[DIM] = {127, -127, 2, 4, 0, 1, -64, 0},
                        value[DIM] = {4, -127, 0, 2, 0, -4, 8, 12};
    for (int b = -1; b < N_BACKENDS; b++) {
        ops *o = b < 0 ? open_ref() : open_backend(b, 1);
        if (!o)
            continue;
        int8_t k[3 * PLANE], v[3 * PLANE];
        memset(k, 0xff, sizeof k);
        memset(v, 0xff, sizeof v);
        kv_layer kv = {k, v, KV_Q8, 3, 1, 16, DIM};
        assert_int_equal(kv_plane_bytes(KV_Q8, 16, DIM), PLANE);
        float y[DIM];
        put_and_attend(o, &kv, 0, qkv, y); // the first of page 2
        for (int d = 0; d < DIM; d++) {
            assert_int_equal(k[2 * PLANE + 16 * d], key[d]);
            assert_int_equal(v[2 * PLANE + d], value[d]);
            assert_within(fabs(y[d] - value[d] * 0.25), 1e-6); // the only key
        }
        uint16_t scale[2];
        memcpy(&scale[0], k + 2 * PLANE + 16 * DIM, 2);
        memcpy(&scale[1], v + 2 * PLANE + 16 * DIM, 2);
        assert_int_equal(scale[0], 0x3f80);
        assert_int_equal(scale[1], 0x3e80);
        o->close(o);
    }
}

// Two positions on two pages with scales of their own, written over what was there before: scores
// and values are those of the second writing.
static void a_position_written_again_has_its_new_scale(void **state) {
    (void)state;
    enum { DIM = 64 };
    for (int b = -1; b < N_BACKENDS; b++) {
        ops *o = b < 0 ? open_ref() : open_backend(b, 1);
        if (!o)
            continue;
        size_t bytes = 3 * kv_plane_bytes(KV_Q8, 16, DIM);
        kv_layer kv = {calloc(1, bytes), calloc(1, bytes), KV_Q8, 3, 1, 16, DIM};
        float qkv[3 * DIM], y[DIM];
        for (int round = 0; round < 3; round++)
            for (int position = 0; position < 17; position++) {
                float size = position == 16 ? 2.0f : 1.0f;
                for (int d = 0; d < DIM; d++) { // scores: 8 for the last, 4 each before
                    qkv[d] = (float)(d == 0) * 4 * (float)(1 << round);
                    qkv[DIM + d] = (float)(d < 2) * 8 * size / (float)(1 << round);
                    qkv[2 * DIM + d] = (float)(d % 2 ? -127 : 127) * size * (float)(1 << round);
                }
                put_and_attend(o, &kv, position, qkv, y);
            }
        double last = exp(8 - 4), want = 4 * 127 * (2 * last + 16) / (last + 16);
        for (int d = 0; d < DIM; d++) // the scale of keys is rounded to 8 bits
            assert_within(fabs(y[d] / (d % 2 ? -want : want) - 1), 4e-3);
        free(kv.k), free(kv.v);
        o->close(o);
    }
}

static void what_is_stored_is_within_a_253rd_of_the_largest(void **state) {
    (void)state;
    static const int dims[] = {8, 40, 64, 72, 128, 256};
    for (int b = -1; b < N_BACKENDS; b++) {
        ops *o = b < 0 ? open_ref() : open_backend(b, 1);
        for (int i = 0; o && i < ROUNDS * 12; i++) {
            int dim = dims[i % 6], position = random_int(0, 47);
            size_t bytes = 3 * kv_plane_bytes(KV_Q8, 16, dim);
            kv_layer kv = {calloc(1, bytes), calloc(1, bytes), KV_Q8, 3, 1, 16, dim};
            float qkv[3 * 256], y[256], largest[2] = {0};
            float size = powf(10, (float)random_int(-25, 25));
            for (int d = 0; d < 3 * dim; d++)
                qkv[d] = d < dim ? 0 : random_float(size) * (random_int(0, 20) ? 1 : 100);
            for (int d = dim; d < 3 * dim; d++)
                largest[d / dim - 1] = fmaxf(largest[d / dim - 1], fabsf(qkv[d]));
            put_and_attend(o, &kv, position, qkv, y);
            seq_span p = {.pages = (int32_t[]){2, 0, 1}};
            size_t at = kv_scale_index(&kv, &p, 0, position);
            double scale[] = {bf16_to_f32(((uint16_t *)kv.k)[at]),
                              bf16_to_f32(((uint16_t *)kv.v)[at])};
            for (int d = 0; d < dim; d++) {
                size_t k = kv_key_index(&kv, &p, 0, position) + (size_t)(16 * d),
                       v = kv_value_index(&kv, &p, 0, position) + (size_t)d;
                assert_within(fabs(scale[0] * ((int8_t *)kv.k)[k] - qkv[dim + d]),
                              largest[0] / 253);
                assert_within(fabs(scale[1] * ((int8_t *)kv.v)[v] - qkv[2 * dim + d]),
                              largest[1] / 253);
            }
            free(kv.k), free(kv.v);
        }
        if (o)
            o->close(o);
    }
}

// As in a cache of floats: a row that has gone wrong must not look like one that has not.
static void what_is_not_finite_stays_so(void **state) {
    (void)state;
    for (int b = -1; b < N_BACKENDS; b++) {
        ops *o = b < 0 ? open_ref() : open_backend(b, 1);
        for (int i = 0; o && i < 3 * 40; i++) {
            int8_t k[3 * 16 * 42], v[3 * 16 * 42];
            kv_layer kv = {k, v, KV_Q8, 3, 1, 16, 40};
            float qkv[3 * 40] = {0}, y[40];
            qkv[40 + i % 40] = i < 40 ? NAN : i < 80 ? INFINITY : -INFINITY;
            put_and_attend(o, &kv, 0, qkv, y);
            assert_true(isnan(y[0]));
            qkv[80 + i % 40] = qkv[40 + i % 40];
            qkv[40 + i % 40] = 0;
            put_and_attend(o, &kv, 0, qkv, y);
            assert_true(isnan(y[0]));
        }
        if (o)
            o->close(o);
    }
}

// Every width and group, positions around page borders, decoding and prefill in one batch: on the
// same cache as the reference, and each row the same bits alone.
static void check_shape_in_q8(ops *o, ops *ref, int dim, int group, int page_tokens) {
    scene s = new_scene(dim, 2, group, KV_Q8, page_tokens);
    int near = random_int(-1, 1);
    add_span(&s, 15, 1);
    add_span(&s, page_tokens * 3 + near, 1);
    add_span(&s, page_tokens + near, 3);
    add_span(&s, near + 1, 2 * page_tokens);
    add_span(&s, 512 + near, 1);
    finish_scene(&s);
    outcome base = play(ref, &s, &(rope_options){false, false, 1});
    kv_layer kv = s.kv;
    kv.k = base.k;
    kv.v = base.v;
    size_t width = (size_t)(s.n_heads * dim), n = (size_t)s.n_rows * width;
    float *y = malloc(n * sizeof *y);
    o->attention(o, &(attention_args){base.qkv, y, s.dim_all, s.n_heads, &kv, s.spans, s.n_spans});
    assert_within(sqrt(nmse(y, base.y, n)), 2e-6);
    assert_within(largest_error(y, base.y, n), 2e-5);
    for (int k = 0; k < s.n_spans; k++)
        for (int j = 0; j < s.spans[k].n_rows; j += 3) {
            float *one = alone(o, &s, &base, k, j);
            assert_memory_equal(one, y + (size_t)(s.spans[k].row + j) * width, width * sizeof *one);
            free(one);
        }
    free(y);
    outcome_free(&base);
    release(&s);
}

static void q8_is_exact_in_every_width_and_group(void **state) {
    (void)state;
    static const int dims[] = {64, 128, 8, 40, 72, 256};
    ops *ref = open_ref();
    for (int b = 0; b < N_BACKENDS; b++) {
        ops *o = open_backend(b, 2);
        for (int i = 0; o && i < (ROUNDS > 3 ? 6 : 2); i++)
            for (int group = 1; group <= 8; group++)
                check_shape_in_q8(o, ref, dims[i], group, group % 2 ? 16 : 32);
        if (o)
            o->close(o);
    }
    ref->close(ref);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_batches_agree_with_the_reference),
        cmocka_unit_test(attention_alone_is_close_in_every_cache_type),
        cmocka_unit_test(the_cache_gets_rounded_keys_and_values_where_the_pages_say),
        cmocka_unit_test(scores_may_rise_far_from_block_to_block),
        cmocka_unit_test(shares_follow_the_exponential),
        cmocka_unit_test(a_row_alone_gives_the_bits_it_gives_in_company),
        cmocka_unit_test(thread_count_and_instruction_set_change_no_bit),
        cmocka_unit_test(angles_stay_exact_at_far_positions),
        cmocka_unit_test(bytes_and_scales_stand_as_counted_by_hand),
        cmocka_unit_test(a_position_written_again_has_its_new_scale),
        cmocka_unit_test(what_is_stored_is_within_a_253rd_of_the_largest),
        cmocka_unit_test(what_is_not_finite_stays_so),
        cmocka_unit_test(q8_is_exact_in_every_width_and_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

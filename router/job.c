// The job's codec and its seal. Owns nothing; any thread. Decoding checks every count against the
// bytes left and every value against its range, so that a worker can use a decoded job as it is;
// whether the tokens exist in the model's vocabulary is for the worker to say.
#include "router/job.h"
#include "base/cursor.h"
#include "router/wire.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define VERSION 1

enum { BIT_IGNORE_END = 1, BIT_FIM = 2, BIT_ECHO = 4, BITS_ALL = 7 };

static void put_i32(buf *out, int v) { buf_put_u32(out, (uint32_t)v); }

static void put_sampling(buf *out, const sampling_params *s) {
    buf_put_u64(out, s->seed);
    buf_put_f32(out, s->temperature);
    buf_put_f32(out, s->top_p);
    buf_put_f32(out, s->min_p);
    put_i32(out, s->top_k);
    buf_put_f32(out, s->presence_penalty);
    buf_put_f32(out, s->frequency_penalty);
    buf_put_f32(out, s->repetition_penalty);
    put_i32(out, s->n_top_logprobs);
    put_i32(out, s->n_bias);
    for (int i = 0; i < s->n_bias; i++) {
        put_i32(out, s->bias[i].id);
        buf_put_f32(out, s->bias[i].bias);
    }
}

void job_encode(const job *j, buf *out) {
    buf_put_u8(out, VERSION);
    wire_put_uuid(out, j->id);
    put_i32(out, j->attempt);
    buf_put_u64(out, j->gateway);
    buf_put_u64(out, (uint64_t)j->ms_left);
    wire_put_uuid(out, j->tenant);
    wire_put_text(out, j->model);
    wire_put_text(out, j->adapter);
    wire_put_ids(out, j->prompt, j->n_prompt);
    buf_put_u8(out, (uint8_t)j->n_choices);
    for (int i = 0; i < j->n_choices; i++) {
        buf_put_u8(out, j->so_far[i].finished);
        wire_put_ids(out, j->so_far[i].ids, j->so_far[i].n);
    }
    put_i32(out, j->max_tokens);
    put_sampling(out, &j->sampling);
    buf_put_u8(out, (uint8_t)j->n_stops);
    for (int i = 0; i < j->n_stops; i++)
        buf_put_bytes(out, j->stops[i].text, j->stops[i].n);
    buf_put_u8(out, (uint8_t)((j->ignore_end ? BIT_IGNORE_END : 0) | (j->fim ? BIT_FIM : 0) |
                              (j->echo_logprobs ? BIT_ECHO : 0)));
}

// ---- decoding: each part returns the name of the field that is wrong, or NULL

static float read_float(cursor *c, float least, float most, const char **bad, const char *name) {
    float v = cursor_f32(c);
    if (!(v >= least && v <= most)) // also NaN
        *bad = *bad ? *bad : name;
    return v;
}

static int read_int(cursor *c, int least, int most, const char **bad, const char *name) {
    int v = (int32_t)cursor_u32(c);
    if (v < least || v > most)
        *bad = *bad ? *bad : name;
    return v;
}

static const char *read_sampling(cursor *c, sampling_params *s) {
    const char *bad = NULL;
    s->seed = cursor_u64(c);
    s->temperature = read_float(c, 0, 2, &bad, "temperature");
    s->top_p = read_float(c, 0, 1, &bad, "top_p");
    s->min_p = read_float(c, 0, 1, &bad, "min_p");
    s->top_k = read_int(c, 0, INT32_MAX, &bad, "top_k");
    s->presence_penalty = read_float(c, -2, 2, &bad, "presence_penalty");
    s->frequency_penalty = read_float(c, -2, 2, &bad, "frequency_penalty");
    s->repetition_penalty = read_float(c, 0, INFINITY, &bad, "repetition_penalty");
    if (!(s->top_p > 0) || !(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
        bad = bad ? bad : "top_p or repetition_penalty";
    s->n_top_logprobs = read_int(c, -1, 20, &bad, "n_top_logprobs");
    s->n_bias = read_int(c, 0, SAMPLING_MAX_BIAS, &bad, "n_bias");
    if (bad)
        return bad;
    for (int i = 0; i < s->n_bias; i++) {
        s->bias[i].id = read_int(c, 0, INT32_MAX, &bad, "bias");
        s->bias[i].bias = read_float(c, -100, 100, &bad, "bias");
    }
    return bad;
}

static const char *read_choices(cursor *c, arena *a, job *j) {
    j->n_choices = cursor_u8(c);
    if (j->n_choices < 1 || j->n_choices > JOB_CHOICES)
        return "n_choices";
    for (int i = 0; i < j->n_choices; i++) {
        uint8_t finished = cursor_u8(c);
        if (finished > 1)
            return "finished";
        j->so_far[i].finished = finished;
        j->so_far[i].ids = wire_ids(c, a, &j->so_far[i].n);
    }
    return NULL;
}

static const char *read_stops(cursor *c, arena *a, job *j) {
    j->n_stops = cursor_u8(c);
    if (j->n_stops > JOB_STOPS)
        return "n_stops";
    for (int i = 0; i < j->n_stops; i++) {
        const char *text = cursor_counted(c, &j->stops[i].n);
        if (!text || !j->stops[i].n)
            return "stops";
        j->stops[i].text = arena_dup(a, text, j->stops[i].n);
    }
    return NULL;
}

static const char *read_head(cursor *c, arena *a, job *j) {
    const char *bad = NULL;
    wire_uuid(c, j->id);
    j->attempt = read_int(c, 1, INT32_MAX, &bad, "attempt");
    j->gateway = cursor_u64(c);
    j->ms_left = (int64_t)cursor_u64(c);
    wire_uuid(c, j->tenant);
    wire_text(c, j->model, sizeof j->model);
    wire_text(c, j->adapter, sizeof j->adapter);
    j->prompt = wire_ids(c, a, &j->n_prompt);
    if (!j->n_prompt)
        bad = bad ? bad : "prompt";
    return bad;
}

static const char *read_job(cursor *c, arena *a, job *j) {
    const char *bad = NULL;
    if (cursor_u8(c) != VERSION)
        return "version";
    if ((bad = read_head(c, a, j)) || (bad = read_choices(c, a, j)))
        return bad;
    j->max_tokens = read_int(c, 0, INT32_MAX, &bad, "max_tokens");
    if (bad || (bad = read_sampling(c, &j->sampling)) || (bad = read_stops(c, a, j)))
        return bad;
    uint8_t bits = cursor_u8(c);
    if (bits & ~BITS_ALL)
        return "flags";
    j->ignore_end = bits & BIT_IGNORE_END;
    j->fim = bits & BIT_FIM;
    j->echo_logprobs = bits & BIT_ECHO;
    for (int i = 0; i < j->n_choices; i++)
        if (j->so_far[i].n > j->max_tokens)
            return "so_far";
    return NULL;
}

int job_decode(const void *p, size_t n, arena *a, job *j, err *e) {
    cursor c = cursor_over(p, n);
    memset(j, 0, sizeof *j);
    const char *bad = read_job(&c, a, j);
    if (c.failed)
        return err_set(e, ERR_FORMAT, NULL, "a job of %zu bytes is cut off or malformed", n);
    if (bad)
        return err_set(e, ERR_FORMAT, bad, "a job has a bad %s", bad);
    if (!cursor_done(&c))
        return err_set(e, ERR_FORMAT, NULL, "a job has %zu bytes too many", cursor_left(&c));
    return 0;
}

// ---- seal

#define AAD_BYTES 64

static size_t put_aad(char out[AAD_BYTES], const char *id, int attempt) {
    return (size_t)snprintf(out, AAD_BYTES, "job:%.36s:%d", id, attempt);
}

int job_seal(const job *j, const secret_ring *ring, buf *out, err *e) {
    buf plain = {0};
    char aad[AAD_BYTES];
    size_t n_aad = put_aad(aad, j->id, j->attempt);
    job_encode(j, &plain);
    int rc = secret_seal(ring, aad, n_aad, plain.data, plain.len, out, e);
    secret_wipe(plain.data, plain.len);
    buf_release(&plain);
    return rc;
}

int job_open(const void *p, size_t n, const char *id, int attempt, const secret_ring *ring,
             arena *a, job *j, err *e) {
    buf plain = {0};
    char aad[AAD_BYTES];
    size_t n_aad = put_aad(aad, id, attempt);
    int rc = secret_open(ring, aad, n_aad, p, n, &plain, e);
    if (!rc)
        rc = job_decode(plain.data, plain.len, a, j, e);
    if (!rc && (strcmp(j->id, id) != 0 || j->attempt != attempt))
        rc = err_set(e, ERR_FORMAT, "id", "a job is sealed for another request");
    if (plain.data)
        secret_wipe(plain.data, plain.len);
    buf_release(&plain);
    return rc;
}

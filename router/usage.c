// Rows of the ledger: their JSON (journal, Redis record) and their way into Postgres. Owns nothing;
// any thread. Does not decide when a row is due (router/request_close.c, recorder.c, sweep.c).
#include "router/usage.h"
#include "router/quota.h"
#include "router/wire.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- JSON: one table per struct drives writing and reading

typedef enum field_kind { FIELD_TEXT, FIELD_UUID, FIELD_INT, FIELD_INT64 } field_kind;
typedef struct field {
    const char *name;
    field_kind kind;
    size_t at, size;
    bool is_optional; // missing in what an earlier version wrote
} field;

#define TEXT(s, f)                                                                                 \
    { #f, FIELD_TEXT, offsetof(s, f), sizeof((s *)0)->f, false }
#define LATER_TEXT(s, f)                                                                           \
    { #f, FIELD_TEXT, offsetof(s, f), sizeof((s *)0)->f, true }
#define UUID(s, f)                                                                                 \
    { #f, FIELD_UUID, offsetof(s, f), sizeof((s *)0)->f, false }
#define INT(s, f)                                                                                  \
    { #f, FIELD_INT, offsetof(s, f), sizeof(int), false }
#define LATER_INT(s, f)                                                                            \
    { #f, FIELD_INT, offsetof(s, f), sizeof(int), true }
#define INT64(s, f)                                                                                \
    { #f, FIELD_INT64, offsetof(s, f), sizeof(int64_t), false }
#define LATER_INT64(s, f)                                                                          \
    { #f, FIELD_INT64, offsetof(s, f), sizeof(int64_t), true }
#define COUNT(a) (sizeof a / sizeof *a)

static const field meta_fields[] = {
    UUID(usage_meta, tenant),       UUID(usage_meta, user),          UUID(usage_meta, key),
    INT64(usage_meta, accepted_ms), TEXT(usage_meta, endpoint),      TEXT(usage_meta, task),
    TEXT(usage_meta, model),        TEXT(usage_meta, adapter),       TEXT(usage_meta, tier),
    INT64(usage_meta, price_in),    INT64(usage_meta, price_cached), INT64(usage_meta, price_out),
    TEXT(usage_meta, idem),         TEXT(usage_meta, scopes),        LATER_TEXT(usage_meta, route),
};
static const field row_fields[] = {
    INT64(usage_row, at_ms),
    TEXT(usage_row, outcome),
    INT(usage_row, attempts),
    INT(usage_row, prompt),
    INT(usage_row, cached),
    INT(usage_row, completion),
    INT64(usage_row, money),
    INT64(usage_row, queue_ms),
    INT64(usage_row, total_ms),
    INT64(usage_row, engine_us),
    INT64(usage_row, first_token_ms),
    LATER_TEXT(usage_row, gateway),
    LATER_TEXT(usage_row, worker),
    LATER_TEXT(usage_row, limited_by),
    LATER_INT(usage_row, steps),
    LATER_INT(usage_row, queue_steps),
    LATER_INT(usage_row, made),
    LATER_INT(usage_row, granted),
    LATER_INT64(usage_row, held_tokens),
    LATER_INT64(usage_row, held_money),
};

static void put_fields(const field *f, size_t n, const void *from, buf *out) {
    for (size_t i = 0; i < n; i++) {
        const char *at = (const char *)from + f[i].at;
        buf_put(out, i ? ",\"" : "{\"", 2);
        buf_puts(out, f[i].name);
        buf_put(out, "\":", 2);
        if (f[i].kind == FIELD_INT)
            buf_put_int(out, *(const int *)(const void *)at);
        else if (f[i].kind == FIELD_INT64)
            buf_put_int(out, *(const int64_t *)(const void *)at);
        else
            buf_put_json(out, at, strlen(at));
    }
    buf_puts(out, "}");
}

static int read_field(const field *f, const json_t *v, char *at) {
    bool is_number = f->kind == FIELD_INT || f->kind == FIELD_INT64;
    if (is_number) {
        json_int_t n = json_integer_value(v);
        if (!json_is_integer(v) || (f->kind == FIELD_INT && (n < 0 || n > INT32_MAX)))
            return -1;
        if (f->kind == FIELD_INT)
            *(int *)(void *)at = (int)n;
        else
            *(int64_t *)(void *)at = n;
        return 0;
    }
    size_t n = json_string_length(v);
    const char *text = json_string_value(v);
    if (!text || n >= f->size || strlen(text) != n ||
        (f->kind == FIELD_UUID && !wire_is_uuid(text, n)))
        return -1;
    memcpy(at, text, n + 1);
    return 0;
}

static int parse_fields(const field *f, size_t n_fields, const char *p, size_t n, void *to,
                        err *e) {
    json_error_t why;
    json_t *object = json_loadb(p, n, JSON_REJECT_DUPLICATES, &why);
    int rc = json_is_object(object) ? 0 : err_set(e, ERR_FORMAT, NULL, "not a JSON object");
    for (size_t i = 0; !rc && i < n_fields; i++) {
        const json_t *v = json_object_get(object, f[i].name);
        bool is_absent = !v && f[i].is_optional;
        if (!is_absent && read_field(&f[i], v, (char *)to + f[i].at))
            rc = err_set(e, ERR_FORMAT, f[i].name, "bad or missing %s", f[i].name);
    }
    json_decref(object);
    return rc;
}

void usage_meta_put(const usage_meta *m, buf *out) {
    put_fields(meta_fields, COUNT(meta_fields), m, out);
}

int usage_meta_parse(const char *p, size_t n, usage_meta *out, err *e) {
    return parse_fields(meta_fields, COUNT(meta_fields), p, n, out, e);
}

void usage_row_put(const usage_row *r, buf *out) {
    put_fields(row_fields, COUNT(row_fields), r, out);
}

int usage_row_parse(const char *p, size_t n, usage_row *out, err *e) {
    return parse_fields(row_fields, COUNT(row_fields), p, n, out, e);
}

// ---- sums and names

int64_t usage_money(const usage_meta *m, int prompt, int cached, int completion) {
    int hit = cached < prompt ? cached : prompt;
    return (int64_t)(prompt - hit) * m->price_in + (int64_t)hit * m->price_cached +
           (int64_t)completion * m->price_out;
}

// A stranger knows nothing of the cache, but what was settled was paid for cheaper tokens.
static int cached_of(const usage_row *r) {
    int64_t saved = usage_money(&r->meta, r->prompt, 0, r->completion) - r->money;
    int64_t each = r->meta.price_in - r->meta.price_cached;
    return each > 0 && saved > 0 && saved / each <= r->prompt ? (int)(saved / each) : 0;
}

void usage_row_settle(usage_row *r, const quota_settlement *s) {
    r->at_ms = s->at_ms;
    r->prompt = s->prompt;
    r->completion = s->completion;
    r->money = s->money;
    if (r->cached > r->prompt ||
        r->money != usage_money(&r->meta, r->prompt, r->cached, r->completion))
        r->cached = cached_of(r);
    memcpy(r->outcome, s->outcome, sizeof r->outcome);
}

void usage_scope_name(const usage_meta *m, char letter, char *out, size_t n) {
    const char *what = letter == 'u' ? m->user : letter == 'k' ? m->key : m->model;
    size_t length = letter == 't' ? 0 : strnlen(what, n - 3);
    out[0] = letter;
    out[1] = ':';
    memcpy(out + 2, what, length);
    out[letter == 't' ? 1 : 2 + length] = '\0';
}

// ---- Postgres

static const char insert_sql[] =
    "WITH fresh AS ("
    " INSERT INTO usage (request_id, tenant_id, user_id, key_id, at, accepted_at, endpoint, task,"
    "  model, adapter, tier, outcome, attempts, prompt_tokens, cached_tokens, completion_tokens,"
    "  money, queue_ms, first_token_ms, total_ms, engine_us, trace)"
    " SELECT id, tenant, usr, key, to_timestamp(at / 1000.0), to_timestamp(accepted / 1000.0),"
    "  endpoint, task, model, adapter, tier, outcome, attempts, prompt, cached, completion, money,"
    "  queue_ms, nullif(first_token_ms, -1), total_ms, engine_us, trace::jsonb"
    " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bigint[],"
    "  $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::int[],"
    "  $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[],"
    "  $20::bigint[], $21::bigint[], $22::text[])"
    "  AS r(id, tenant, usr, key, at, accepted, endpoint, task, model, adapter, tier, outcome,"
    "  attempts, prompt, cached, completion, money, queue_ms, first_token_ms, total_ms, engine_us,"
    "  trace)"
    " ON CONFLICT (request_id) DO NOTHING"
    " RETURNING tenant_id, user_id, key_id, model, at, money,"
    "  prompt_tokens + completion_tokens AS tokens),"
    " counted AS ("
    " INSERT INTO quota_used AS q (tenant_id, scope, day, requests, tokens, money)"
    " SELECT tenant_id, s.scope, (at AT TIME ZONE 'UTC')::date, count(*), sum(tokens), sum(f.money)"
    " FROM fresh f, LATERAL (VALUES ('t'), ('u:' || user_id), ('k:' || key_id), ('m:' || model))"
    "  AS s(scope)"
    " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    " ON CONFLICT (tenant_id, scope, day) DO UPDATE SET requests = q.requests + excluded.requests,"
    "  tokens = q.tokens + excluded.tokens, money = q.money + excluded.money)"
    " SELECT count(*) FROM fresh";

#define N_COLUMNS 22
#define TRACE_COLUMN 21

static void put_text_element(buf *b, const char *s) {
    buf_puts(b, "\"");
    for (size_t n; *s; s += n) {
        n = strcspn(s, "\"\\");
        buf_put(b, s, n);
        if (s[n]) {
            buf_put(b, "\\", 1);
            buf_put(b, s + n++, 1);
        }
    }
    buf_puts(b, "\"");
}

static void put_trace_text(buf *b, const char *name, const char *text) {
    buf_printf(b, "\"%s\":", name);
    if (*text)
        buf_put_json(b, text, strlen(text));
    else
        buf_puts(b, "null");
    buf_puts(b, ",");
}

static void put_trace(buf *b, const usage_row *r) {
    const usage_meta *m = &r->meta;
    buf_puts(b, "{");
    put_trace_text(b, "route", m->route);
    put_trace_text(b, "gateway", r->gateway);
    put_trace_text(b, "worker", r->worker);
    put_trace_text(b, "limited_by", r->limited_by);
    buf_printf(b,
               "\"steps\":%d,\"queue_steps\":%d,\"made\":%d,\"granted\":%d,\"held_tokens\":%" PRId64
               ",\"held_money\":%" PRId64 ",\"price_in\":%" PRId64 ",\"price_cached\":%" PRId64
               ",\"price_out\":%" PRId64 "}",
               r->steps, r->queue_steps, r->made, r->granted, r->held_tokens, r->held_money,
               m->price_in, m->price_cached, m->price_out);
}

static void put_row(buf columns[N_COLUMNS], const usage_row *r) {
    const char *const text[] = {
        r->id,        r->meta.tenant,   r->meta.user, r->meta.key,   NULL,
        NULL,         r->meta.endpoint, r->meta.task, r->meta.model, r->meta.adapter,
        r->meta.tier, r->outcome};
    const int64_t numbers[] = {r->attempts, r->prompt,         r->cached,   r->completion, r->money,
                               r->queue_ms, r->first_token_ms, r->total_ms, r->engine_us};
    buf trace = {0};
    put_trace(&trace, r);
    for (int i = 0; i < N_COLUMNS; i++) {
        buf *b = &columns[i];
        buf_puts(b, b->len ? "," : "{");
        if (i == 4)
            buf_put_int(b, r->at_ms);
        else if (i == 5)
            buf_put_int(b, r->meta.accepted_ms);
        else if (i < 12)
            put_text_element(b, text[i]);
        else if (i == TRACE_COLUMN)
            put_text_element(b, trace.data);
        else
            buf_put_int(b, numbers[i - 12]);
    }
    buf_release(&trace);
}

// By id, so that two that insert the same rows take their locks in the same order.
static int by_id(const void *a, const void *b) {
    const usage_row *x = *(const usage_row *const *)a, *y = *(const usage_row *const *)b;
    return strcmp(x->id, y->id);
}

int usage_insert(pg *p, const usage_row *const *rows, int n, int *fresh, err *e) {
    buf columns[N_COLUMNS] = {{0}};
    const char *params[N_COLUMNS];
    const usage_row *sorted[USAGE_BATCH];
    pg_result *result = NULL;
    n = n < USAGE_BATCH ? n : USAGE_BATCH;
    for (int i = 0; i < n; i++)
        sorted[i] = rows[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_id);
    for (int i = 0; i < n; i++)
        put_row(columns, sorted[i]);
    for (int i = 0; i < N_COLUMNS; i++) {
        buf_puts(&columns[i], n ? "}" : "{}");
        params[i] = columns[i].data;
    }
    int rc = pg_query(p, insert_sql, N_COLUMNS, params, &result, e);
    if (!rc) {
        *fresh = (int)pg_int(result, 0, 0);
        pg_result_free(result);
    }
    for (int i = 0; i < N_COLUMNS; i++)
        buf_release(&columns[i]);
    return rc;
}

static const char read_back_sql[] =
    "SELECT request_id, prompt_tokens, cached_tokens, completion_tokens, money, outcome FROM usage"
    " WHERE request_id = ANY($1::uuid[])";

static void take_back(const pg_result *result, int i, usage_row *const *rows, int n) {
    for (int k = 0; k < n; k++) {
        usage_row *r = rows[k];
        if (strcmp(r->id, pg_text(result, i, 0)) != 0)
            continue;
        r->prompt = (int)pg_int(result, i, 1);
        r->cached = (int)pg_int(result, i, 2);
        r->completion = (int)pg_int(result, i, 3);
        r->money = pg_int(result, i, 4);
        snprintf(r->outcome, sizeof r->outcome, "%s", pg_text(result, i, 5));
    }
}

int usage_read_back(pg *p, usage_row *const *rows, int n, int *found, err *e) {
    buf ids = {0};
    pg_result *result = NULL;
    for (int i = 0; i < n; i++)
        buf_printf(&ids, "%c%s", i ? ',' : '{', rows[i]->id);
    buf_puts(&ids, n ? "}" : "{}");
    int rc = pg_query(p, read_back_sql, 1, (const char *const[]){ids.data}, &result, e);
    *found = rc ? 0 : pg_rows(result);
    for (int i = 0; i < *found; i++)
        take_back(result, i, rows, n);
    pg_result_free(result);
    buf_release(&ids);
    return rc;
}

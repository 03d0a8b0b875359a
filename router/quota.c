// Builds the calls of tiergate3 and reads their answers. Owns nothing; any thread. Does not send:
// the request's loop, the recorder and the sweeper each have a connection of their own.
#include "router/quota.h"
#include "router/library.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SENT_MOST 999999999 // nine digits, written in place

// ---- keys: open record idem scope...

static void put_keys(command *c, const char *function, const usage_meta *m, const char *id) {
    command_text(c, "FCALL");
    command_text(c, function);
    command_int(c, 3 + (int64_t)strlen(m->scopes));
    command_join(c, 3, (const char *const[]){"tg:{", m->tenant, "}:open"});
    command_join(c, 4, (const char *const[]){"tg:{", m->tenant, "}:r:", id});
    command_join(c, 4,
                 (const char *const[]){"tg:{", m->tenant, "}:idem:", m->idem[0] ? m->idem : "-"});
    for (const char *s = m->scopes; *s; s++) {
        char name[96];
        usage_scope_name(m, *s, name, sizeof name);
        command_join(c, 4, (const char *const[]){"tg:{", m->tenant, "}:s:", name});
    }
}

static void put_limits(command *c, const usage_meta *m, const quota_limits *l) {
    for (size_t i = 0; i < strlen(m->scopes); i++)
        for (int k = 0; k < N_QUOTA_KINDS; k++)
            command_int(c, l->limit[i][k]);
}

const char *quota_kind_words(const char *kind) {
    static const struct {
        const char *kind, *words;
    } known[] = {{"rpm", "requests per minute"},  {"tpm", "tokens per minute"},
                 {"conc", "concurrent requests"}, {"tpd", "tokens per day"},
                 {"tpo", "tokens per month"},     {"mpo", "money per month"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(kind, known[i].kind) == 0)
            return known[i].words;
    return kind;
}

void quota_hold_command(const usage_meta *m, const char *id, uint64_t gateway,
                        const char *body_hash, const quota_demand *d, const quota_limits *l,
                        command *out) {
    buf meta = {0};
    put_keys(out, "tg3_hold", m, id);
    command_text(out, id);
    command_hex(out, gateway);
    command_int(out, d->prompt);
    command_int(out, d->want);
    command_int(out, d->n_choices);
    command_int(out, d->need);
    command_int(out, m->price_in);
    command_int(out, m->price_out);
    command_hex(out, id_random_u64()); // nonce
    command_text(out, body_hash);
    usage_meta_put(m, &meta);
    command_text(out, meta.data);
    put_limits(out, m, l);
    buf_release(&meta);
}

void quota_extend_command(const usage_meta *m, const char *id, int from, int slice, int n_choices,
                          const quota_limits *l, command *out) {
    put_keys(out, "tg3_extend", m, id);
    command_int(out, from);
    command_int(out, slice);
    command_int(out, n_choices);
    put_limits(out, m, l);
}

static void put_settle(const usage_meta *m, const char *id, const quota_settlement *s,
                       const char *outcome, command *out) {
    put_keys(out, "tg3_settle", m, id);
    command_int(out, s ? s->prompt : -1);
    command_int(out, s ? s->completion : 0);
    command_int(out, s ? s->money : 0);
    command_text(out, outcome);
}

void quota_settle_command(const usage_meta *m, const char *id, const quota_settlement *s,
                          const char *outcome, bool drop, command *out) {
    put_settle(m, id, s, outcome, out);
    command_words(out, 2, (const char *const[]){drop ? "1" : "0", "0"});
}

void quota_release_command(const usage_meta *m, const char *id, command *out) {
    put_keys(out, "tg3_release", m, id);
}

void quota_settle_answered_command(const usage_meta *m, const char *id, const quota_settlement *s,
                                   const char *outcome, command *out) {
    put_settle(m, id, s, outcome, out);
    command_words(out, 2, (const char *const[]){"0", "1"});
}

void quota_answer_command(const char *tenant, const char *idem, const char *id, const void *p,
                          size_t n, command *out) {
    command_words(out, 3, (const char *const[]){"FCALL", "tg3_answer", "1"});
    command_printf(out, "tg:{%s}:idem:%s", tenant, idem);
    command_text(out, id);
    command_bytes(out, n ? p : "", n);
}

void quota_poison_command(const char *tenant, const char *body_hash, int64_t ms, command *out) {
    command_text(out, "SET");
    command_printf(out, "tg:{%s}:poison:%s", tenant, body_hash);
    command_words(out, 2, (const char *const[]){"1", "PX"});
    command_int(out, ms);
}

void quota_progress_command(const char *tenant, const quota_sent *sent, int n, command *out) {
    command_text(out, "FCALL");
    command_text(out, "tg3_progress");
    command_int(out, n);
    for (int i = 0; i < n; i++)
        command_printf(out, "tg:{%s}:r:%s", tenant, sent[i].id);
    for (int i = 0; i < n; i++)
        command_printf(out, "%09d %d", sent[i].sent < SENT_MOST ? sent[i].sent : SENT_MOST,
                       sent[i].prefilled);
}

void quota_load_command(const usage_meta *m, int scope, const char *nonce, const quota_counters *c,
                        command *out) {
    char name[96];
    usage_scope_name(m, m->scopes[scope], name, sizeof name);
    command_words(out, 3, (const char *const[]){"FCALL", "tg3_load", "1"});
    command_printf(out, "tg:{%s}:s:%s", m->tenant, name);
    command_text(out, nonce);
    const int64_t values[] = {c->minute,     c->minute_requests, c->minute_tokens, c->day,
                              c->day_tokens, c->month,           c->month_tokens,  c->month_money};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        command_int(out, values[i]);
}

// ---- answers

static void copy_text(const redis_value *v, char *out, size_t n) {
    const char *text = redis_value_str(v, NULL);
    snprintf(out, n, "%s", text ? text : "");
}

static quota_verdict read_verdict(const redis_value *v) {
    static const struct {
        const char *word;
        quota_verdict verdict;
    } words[] = {{"OK", QUOTA_OK},     {"SAME", QUOTA_OK},       {"NO", QUOTA_NO},
                 {"MISS", QUOTA_MISS}, {"POISON", QUOTA_POISON}, {"GONE", QUOTA_GONE}};
    static const struct {
        const char *word;
        quota_verdict verdict;
    } idem[] = {{"OPEN", QUOTA_OPEN}, {"OTHER", QUOTA_OTHER}, {"DONE", QUOTA_DONE}};
    for (size_t i = 0; redis_value_is(redis_value_at(v, 0), "IDEM") && i < 3; i++)
        if (redis_value_is(redis_value_at(v, 1), idem[i].word))
            return idem[i].verdict;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (redis_value_is(redis_value_at(v, 0), words[i].word))
            return words[i].verdict;
    return library_is_missing(v) ? QUOTA_NO_CALL : QUOTA_LOST;
}

static rate read_rate(const redis_value *v, size_t at) {
    return (rate){.limit = redis_value_int(redis_value_at(v, at)),
                  .left = redis_value_int(redis_value_at(v, at + 1)),
                  .reset_ms = redis_value_int(redis_value_at(v, at + 2))};
}

static void read_rates(const redis_value *v, size_t at, rates *out) {
    if (redis_value_len(v) < at + 6) // an answer of extend, or to a repeated call
        return;
    out->requests = read_rate(v, at);
    out->tokens = read_rate(v, at + 3);
}

void quota_read_answer(const redis_value *v, quota_answer *out) {
    *out = (quota_answer){.verdict = read_verdict(v), .rates = RATES_NONE};
    switch (out->verdict) {
    case QUOTA_OK:
        out->granted = (int)redis_value_int(redis_value_at(v, 1));
        copy_text(redis_value_at(v, 3), out->kind, sizeof out->kind);
        read_rates(v, 4, &out->rates);
        break;
    case QUOTA_NO:
        out->scope = (int)redis_value_int(redis_value_at(v, 1));
        copy_text(redis_value_at(v, 2), out->kind, sizeof out->kind);
        out->retry_ms = redis_value_int(redis_value_at(v, 3));
        out->limit = redis_value_int(redis_value_at(v, 4));
        out->used = redis_value_int(redis_value_at(v, 5));
        out->demand = redis_value_int(redis_value_at(v, 6));
        read_rates(v, 7, &out->rates);
        break;
    case QUOTA_DONE:
        out->answer = redis_value_str(redis_value_at(v, 2), &out->n_answer);
        break;
    case QUOTA_POISON:
        out->retry_ms = redis_value_int(redis_value_at(v, 1));
        break;
    case QUOTA_MISS:
        out->scope = (int)redis_value_int(redis_value_at(v, 1));
        copy_text(redis_value_at(v, 2), out->nonce, sizeof out->nonce);
        out->now_s = redis_value_int(redis_value_at(v, 3));
        break;
    default:
        break;
    }
}

quota_verdict quota_read_settlement(const redis_value *v, quota_settlement *out) {
    quota_verdict verdict = read_verdict(v);
    if (verdict != QUOTA_OK)
        return verdict;
    out->at_ms = redis_value_int(redis_value_at(v, 1));
    out->prompt = (int)redis_value_int(redis_value_at(v, 2));
    out->completion = (int)redis_value_int(redis_value_at(v, 3));
    out->money = redis_value_int(redis_value_at(v, 4));
    copy_text(redis_value_at(v, 5), out->outcome, sizeof out->outcome);
    return QUOTA_OK;
}

// ---- the record: `state sent prefilled granted prompt ht hm pin pout t at p c m outcome gw meta`

#define RECORD_WORDS 16 // before meta

int quota_read_record(const char *p, size_t n, quota_record *out, err *e) {
    const char *word[RECORD_WORDS + 1], *at = p, *end = p + n;
    for (int i = 0; i <= RECORD_WORDS; i++) {
        const char *blank = i < RECORD_WORDS ? memchr(at, ' ', (size_t)(end - at)) : end;
        if (!blank)
            return err_set(e, ERR_FORMAT, NULL, "a record of %zu bytes is cut off", n);
        word[i] = at;
        at = blank + (i < RECORD_WORDS);
    }
    char gateway[20];
    size_t n_gateway = (size_t)(word[16] - word[15]) - 1;
    if (n_gateway != 16)
        return err_set(e, ERR_FORMAT, "gw", "a record has a bad gw");
    memcpy(gateway, word[15], n_gateway);
    gateway[n_gateway] = '\0';
    *out = (quota_record){.gateway = strtoull(gateway, NULL, 16),
                          .is_open = word[0][0] == 'o',
                          .sent = (int)strtol(word[1], NULL, 10),
                          .prefilled = word[2][0] == '1',
                          .is_accepted = word[2][0] != '2',
                          .granted = (int)strtol(word[3], NULL, 10),
                          .prompt = (int)strtol(word[4], NULL, 10),
                          .held_tokens = strtoll(word[5], NULL, 10),
                          .held_money = strtoll(word[6], NULL, 10),
                          .held_ms = strtoll(word[9], NULL, 10),
                          .settled = {.at_ms = strtoll(word[10], NULL, 10),
                                      .prompt = (int)strtol(word[11], NULL, 10),
                                      .completion = (int)strtol(word[12], NULL, 10),
                                      .money = strtoll(word[13], NULL, 10)}};
    snprintf(out->settled.outcome, sizeof out->settled.outcome, "%.*s",
             (int)(word[15] - word[14]) - 1, word[14]);
    return usage_meta_parse(word[16], (size_t)(end - word[16]), &out->meta, e);
}

// ---- the ledger

static const char ledger_sql[] =
    "WITH t AS (SELECT to_timestamp($4::bigint) AT TIME ZONE 'UTC' AS now),"
    " q AS (SELECT u.day, u.tokens, u.money FROM quota_used u, t"
    "  WHERE u.tenant_id = $1::uuid AND u.scope = $2 AND u.day >= date_trunc('month', "
    "t.now)::date),"
    " m AS (SELECT count(*) AS requests, coalesce(sum(prompt_tokens + completion_tokens), 0) AS "
    "tokens"
    "  FROM usage, t WHERE tenant_id = $1::uuid AND at >= date_trunc('minute', t.now) AT TIME ZONE "
    "'UTC'"
    "  AND CASE left($2, 1) WHEN 'u' THEN user_id::text WHEN 'k' THEN key_id::text"
    "  WHEN 'm' THEN model ELSE '' END = $3)"
    " SELECT m.requests, m.tokens,"
    "  (SELECT coalesce(sum(tokens), 0) FROM q, t WHERE q.day = t.now::date),"
    "  (SELECT coalesce(sum(tokens), 0) FROM q), (SELECT coalesce(sum(money), 0) FROM q),"
    "  (SELECT extract(year FROM now)::bigint * 12 + extract(month FROM now)::bigint - 1 FROM t)"
    " FROM m";

int quota_read_ledger(pg *p, const usage_meta *m, int scope, int64_t now_s, quota_counters *out,
                      err *e) {
    char name[96], now[24];
    pg_result *r = NULL;
    usage_scope_name(m, m->scopes[scope], name, sizeof name);
    snprintf(now, sizeof now, "%" PRId64, now_s);
    const char *params[] = {m->tenant, name, name[1] ? name + 2 : "", now};
    if (pg_query(p, ledger_sql, 4, params, &r, e))
        return -1;
    *out = (quota_counters){.minute = now_s / 60,
                            .minute_requests = pg_int(r, 0, 0),
                            .minute_tokens = pg_int(r, 0, 1),
                            .day = now_s / 86400,
                            .day_tokens = pg_int(r, 0, 2),
                            .month = pg_int(r, 0, 5),
                            .month_tokens = pg_int(r, 0, 3),
                            .month_money = pg_int(r, 0, 4)};
    pg_result_free(r);
    return 0;
}

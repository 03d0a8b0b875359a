// `tiergate usage verify`: proves that the ledger agrees with itself and with what is held, and
// names every difference. Reads a snapshot of the database, then Redis; changes nothing. A record
// whose row is not there yet is no difference before its gateway had time to commit it.
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/pg.h"
#include "cli/settings.h"
#include "cli/usage_verify.h"
#include "router/record.h"

#define SWEPT_MS 40000 // a lost request is closed after 15 to 25 s; and its row needs a moment
#define SHOWN_MOST 1000

typedef struct difference {
    const char *check; // static
    const char *sql;   // rows of one text each; $1 = SHOWN_MOST
} difference;

static const difference checks[] = {
    {"sums",
     "SELECT format('tenant %s, scope %s, day %s: quota_used says %s requests, %s tokens, money "
     "%s; "
     "the rows say %s, %s, %s', tenant_id, scope, day, q.requests, q.tokens, q.money, s.requests, "
     "s.tokens, s.money) FROM (SELECT tenant_id, scope, (at AT TIME ZONE 'UTC')::date AS day, "
     "count(*) AS requests, sum(prompt_tokens + completion_tokens) AS tokens, sum(u.money) AS "
     "money "
     "FROM usage u, LATERAL (VALUES ('t'), ('u:' || user_id), ('k:' || key_id), ('m:' || model)) "
     "AS x(scope) GROUP BY 1, 2, 3) s FULL JOIN quota_used q USING (tenant_id, scope, day) "
     "WHERE (q.requests, q.tokens, q.money) IS DISTINCT FROM (s.requests, s.tokens, s.money) "
     "ORDER BY tenant_id, scope, day LIMIT $1::int"},
    {"outcome",
     "SELECT format('request %s: its outcome is \"%s\"', request_id, outcome) FROM usage "
     "WHERE outcome NOT IN ('ok', 'client_gone', 'deadline', 'overloaded', 'worker_lost', "
     "'dead_letter', 'revoked', 'superseded', 'gateway_lost', 'failed', 'unknown') "
     "ORDER BY request_id LIMIT $1::int"},
    {"money",
     "SELECT format('request %s: money is %s, its prices and tokens make %s', request_id, money, "
     "made) FROM (SELECT request_id, money, (prompt_tokens - cached_tokens) * "
     "(trace->>'price_in')::bigint + cached_tokens * (trace->>'price_cached')::bigint + "
     "completion_tokens * (trace->>'price_out')::bigint AS made FROM usage WHERE trace IS NOT NULL)"
     " p WHERE money <> made ORDER BY request_id LIMIT $1::int"},
    {"tokens",
     "SELECT format('request %s: %s of %s prompt tokens cached, %s tokens made, %s held', "
     "request_id, cached_tokens, prompt_tokens, completion_tokens, trace->>'held_tokens') "
     "FROM usage WHERE cached_tokens > prompt_tokens OR (trace IS NOT NULL AND "
     "(trace->>'held_tokens')::bigint > 0 AND prompt_tokens + completion_tokens > "
     "(trace->>'held_tokens')::bigint) ORDER BY request_id LIMIT $1::int"},
    // What came from workers, as its gateway counted it; a stranger who wrote the row knows nothing
    // of it.
    {"produced",
     "SELECT format('request %s: %s tokens came from workers, its row has %s', request_id, "
     "trace->>'made', completion_tokens) FROM usage WHERE trace ? 'made' AND "
     "trace->>'worker' IS NOT NULL AND (completion_tokens > (trace->>'made')::bigint OR "
     "outcome = 'ok' AND completion_tokens <> (trace->>'made')::bigint) "
     "ORDER BY request_id LIMIT $1::int"},
};
enum { N_CHECKS = sizeof checks / sizeof *checks };

typedef struct verification {
    const config *c;
    bool json;
    json_t *found; // {"check", "what"}
    int64_t n_rows, n_records, now_ms;
    pg *db;
    redis *r;
    err failed; // of the walk through the records
} verification;

static void add(verification *v, const char *check, const char *what) {
    json_array_append_new(v->found, json_pack("{s:s,s:s}", "check", check, "what", what));
}

// ---- the ledger with itself

static int check_ledger(verification *v, err *e) {
    char most[16];
    pg_result *r = NULL;
    snprintf(most, sizeof most, "%d", SHOWN_MOST);
    if (pg_exec(v->db, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", e) ||
        pg_query(v->db, "SELECT count(*) FROM usage", 0, NULL, &r, e))
        return -1;
    v->n_rows = pg_int(r, 0, 0);
    pg_result_free(r);
    for (int i = 0; i < N_CHECKS; i++) {
        if (pg_query(v->db, checks[i].sql, 1, (const char *[]){most}, &r, e))
            return -1;
        for (int k = 0; k < pg_rows(r); k++)
            add(v, checks[i].check, pg_text(r, k, 0));
        pg_result_free(r);
    }
    return pg_exec(v->db, "COMMIT", e);
}

// ---- the ledger with the records

static void add_record(verification *v, const char *check, const char *id, const char *what) {
    char text[256];
    snprintf(text, sizeof text, "request %s: %s", id, what);
    add(v, check, text);
}

static void check_open(verification *v, const char *id, const quota_record *k) {
    char what[160];
    bool is_alive;
    if (v->now_ms - k->held_ms < SWEPT_MS ||
        record_gateway_is_alive(v->r, k->gateway, &is_alive, &v->failed) || is_alive)
        return;
    snprintf(what, sizeof what,
             "open since %" PRId64 " s, its gateway %016" PRIx64 " is gone and nobody closed it",
             (v->now_ms - k->held_ms) / 1000, k->gateway);
    add_record(v, "open", id, what);
}

static void compare(verification *v, const char *id, const quota_settlement *s,
                    const pg_result *row) {
    char what[192];
    if (pg_int(row, 0, 0) == s->prompt && pg_int(row, 0, 1) == s->completion &&
        pg_int(row, 0, 2) == s->money && !strcmp(pg_text(row, 0, 3), s->outcome))
        return;
    snprintf(what, sizeof what,
             "settled %d + %d tokens, money %" PRId64 ", %s; its row says %lld + %lld, %lld, %s",
             s->prompt, s->completion, s->money, s->outcome, pg_int(row, 0, 0), pg_int(row, 0, 1),
             pg_int(row, 0, 2), pg_text(row, 0, 3));
    add_record(v, "settled", id, what);
}

static void check_settled(verification *v, const char *id, const quota_record *k) {
    static const char sql[] = "SELECT prompt_tokens, completion_tokens, money, outcome FROM usage "
                              "WHERE request_id = $1::uuid";
    pg_result *r = NULL;
    if (pg_query(v->db, sql, 1, &id, &r, &v->failed))
        return;
    if (pg_rows(r) == 1)
        compare(v, id, &k->settled, r);
    else if (v->now_ms - k->settled.at_ms > SWEPT_MS)
        add_record(v, "settled", id, "settled long ago, and there is no row");
    pg_result_free(r);
}

static void check_record(void *ctx, const char *id, const quota_record *k) {
    verification *v = ctx;
    v->n_records++;
    if (v->failed.code)
        return;
    if (!k)
        add_record(v, "record", id, "its record cannot be read");
    else if (k->is_open)
        check_open(v, id, k);
    else
        check_settled(v, id, k);
}

static int check_records(verification *v, err *e) {
    if (!*v->c->redis_address)
        return err_set(e, ERR_INVALID, "redis.address",
                       "[redis] address is not set: where are the records?");
    if (redis_connect(v->c->redis_address, 2000, &v->r, e) ||
        record_clock_ms(v->r, &v->now_ms, e) || record_each(v->r, check_record, v, e))
        return -1;
    if (v->failed.code)
        *e = v->failed;
    return v->failed.code ? -1 : 0;
}

// ---- the scopes' counters with the records and the ledger

// One step of Redis, or requests would come between. KEYS the tenant's open set, ARGV a scope ->
// nil, or texts: a difference of what is held ("" none), the time in ms, day, its tokens, month,
// its tokens and money, and all records in JSON, with what was settled where this scope counted it.
static const char scope_lua[] =
    "local tenant, n, tokens, money, all = string.sub(KEYS[1], 1, -5), 0, 0, 0, {}\n"
    "local v = redis.call('GET', tenant .. 's:' .. ARGV[1])\n"
    "if not v or #v ~= 88 then return nil end\n"
    "local f = {struct.unpack('<ddddddddddd', v)}\n"
    "for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do\n"
    "  local r = redis.call('GET', tenant .. 'r:' .. id) or ''\n"
    "  local state, ht, hm, at, p, c, m, text = string.match(r, '^(%l) %d+ %d %d+ %d+ (%d+) (%d+) "
    "%d+ %d+ %d+ (%d+) (%d+) (%d+) (%d+) %S+ %S+ ({.*})$')\n"
    "  local meta = text and cjson.decode(text) or {scopes = ''}\n"
    "  local own = {t = 't', u = 'u:' .. (meta.user or ''), k = 'k:' .. (meta.key or ''), "
    "m = 'm:' .. (meta.model or '')}\n"
    "  local letter, settled = string.sub(ARGV[1], 1, 1), ''\n"
    "  if string.find(meta.scopes, letter, 1, true) and own[letter] == ARGV[1] then\n"
    "    if state == 'o' then n, tokens, money = n + 1, tokens + ht, money + hm\n"
    "    else settled = string.format(',\"at\":%s,\"tokens\":%d,\"money\":%s', at, p + c, m) end\n"
    "  end\n"
    "  all[#all + 1] = string.format('{\"id\":\"%s\"%s}', id, settled)\n"
    "end\n"
    "local held = ''\n"
    "if f[9] ~= n or f[10] ~= tokens or f[11] ~= money then\n"
    "  held = string.format('Redis holds %d requests, %d tokens, money %d; its open requests %d, "
    "%d, %d', f[9], f[10], f[11], n, tokens, money)\n"
    "end\n"
    "local t, said = redis.call('TIME'), {held}\n"
    "said[2] = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))\n"
    "for i = 4, 8 do said[i - 1] = string.format('%d', f[i]) end\n"
    "said[8] = '[' .. table.concat(all, ',') .. ']'\n"
    "return said";

// The ledger as Redis should count it at that time: rows of later ones and of requests with a
// record do not count, but as their records say. Which rows of the very millisecond do is open.
// $1 tenant, $2 scope, $3... as scope_lua said. -> a row with a difference, or none
static const char used_sql[] =
    "WITH record AS (SELECT * FROM jsonb_to_recordset($9::jsonb) AS r(id uuid, at bigint, "
    "tokens bigint, money bigint)), "
    "moment AS (SELECT to_timestamp($3::bigint / 1000.0) AS at, date '1970-01-01' + $4::int AS "
    "day, make_date($6::int / 12, $6::int % 12 + 1, 1) AS month), "
    "part AS (SELECT day, tokens, money, false AS is_tie FROM quota_used "
    "WHERE tenant_id = $1::uuid AND scope = $2 "
    "UNION ALL SELECT (to_timestamp(at / 1000.0) AT TIME ZONE 'UTC')::date, tokens, money, false "
    "FROM record WHERE at IS NOT NULL "
    "UNION ALL SELECT (u.at AT TIME ZONE 'UTC')::date, -(prompt_tokens + completion_tokens), "
    "-money, u.at = m.at AND request_id <> ALL (ARRAY(SELECT id FROM record)) "
    "FROM usage u, moment m WHERE tenant_id = $1::uuid "
    "AND (u.at >= m.at OR request_id = ANY (ARRAY(SELECT id FROM record))) "
    "AND $2 IN ('t', 'u:' || user_id, 'k:' || key_id, 'm:' || model)), "
    "sums AS (SELECT coalesce(sum(tokens) FILTER (WHERE p.day = m.day AND NOT is_tie), 0) AS d, "
    "coalesce(sum(tokens) FILTER (WHERE p.day = m.day), 0) AS d_least, "
    "coalesce(sum(tokens) FILTER (WHERE NOT is_tie), 0) AS t, coalesce(sum(tokens), 0) AS "
    "t_least, coalesce(sum(money) FILTER (WHERE NOT is_tie), 0) AS c, coalesce(sum(money), 0) AS "
    "c_least FROM moment m LEFT JOIN part p ON p.day >= month AND p.day < month + interval '1 "
    "month') "
    "SELECT format('Redis counts %s tokens on %s, %s tokens and money %s in its month; the "
    "ledger %s, %s, %s', $5::text, day, $7::text, $8::text, d, t, c) FROM sums, moment "
    "WHERE NOT ($5::bigint BETWEEN d_least AND d AND $7::bigint BETWEEN t_least AND t AND "
    "$8::bigint BETWEEN c_least AND c)";

enum { SAID = 8 }; // texts of scope_lua

static void add_scope(verification *v, const char *check, const char *tenant, const char *scope,
                      const char *what) {
    char text[512];
    snprintf(text, sizeof text, "tenant %s, scope %s: %s", tenant, scope, what);
    add(v, check, text);
}

static int check_used(verification *v, const char *tenant, const char *scope,
                      const redis_value *said, err *e) {
    const char *args[1 + SAID] = {tenant, scope};
    pg_result *r = NULL;
    for (size_t i = 1; i < SAID; i++)
        args[1 + i] = redis_value_str(redis_value_at(said, i), NULL);
    int rc = pg_query(v->db, used_sql, 1 + SAID, args, &r, e);
    if (!rc && pg_rows(r))
        add_scope(v, "used", tenant, scope, pg_text(r, 0, 0));
    pg_result_free(r);
    return rc;
}

static int check_scope(verification *v, const char *tenant, const char *scope, err *e) {
    char open[96];
    redis_reply_box *box = NULL;
    snprintf(open, sizeof open, "tg:{%s}:open", tenant);
    if (redis_call(v->r, 5, (const char *const[]){"EVAL", scope_lua, "1", open, scope}, NULL, &box,
                   e))
        return -1;
    const redis_value *said = redis_reply_value(box);
    const char *held = redis_value_str(redis_value_at(said, 0), NULL);
    int rc = 0;
    if (redis_value_kind(said) == REDIS_ERROR)
        rc = err_set(e, ERR_DEPENDENCY, NULL, "Redis cannot compare a scope's counters: %s",
                     redis_value_str(said, NULL));
    else if (redis_value_kind(said) == REDIS_ARRAY)
        rc = check_used(v, tenant, scope, said, e);
    if (held && *held)
        add_scope(v, "held", tenant, scope, held);
    redis_reply_free(box);
    return rc;
}

static int check_scopes(verification *v, err *e) {
    pg_result *r = NULL;
    int rc = pg_query(v->db, "SELECT tenant_id, scope FROM limits ORDER BY 1, 2", 0, NULL, &r, e);
    for (int i = 0; !rc && i < pg_rows(r); i++)
        rc = check_scope(v, pg_text(r, i, 0), pg_text(r, i, 1), e);
    pg_result_free(r);
    return rc;
}

// ---- the command

static void print(const verification *v) {
    size_t n = json_array_size(v->found);
    if (v->json) {
        json_t *o = json_pack("{s:b,s:I,s:I,s:O}", "equal", n == 0, "rows", (json_int_t)v->n_rows,
                              "records", (json_int_t)v->n_records, "differences", v->found);
        json_dumpf(o, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(o);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(v->found, i);
        printf("%s: %s\n", json_string_value(json_object_get(d, "check")),
               json_string_value(json_object_get(d, "what")));
    }
    printf("%" PRId64 " rows, %" PRId64 " records in Redis, %zu differences\n", v->n_rows,
           v->n_records, n);
}

int usage_verify(const config *c, bool json, err *e) {
    verification v = {.c = c, .json = json, .found = json_array()};
    int rc = pg_connect(c->postgres_url, &v.db, e);
    if (!rc)
        pg_set_limit(v.db, 0); // a large ledger may take its time
    if (!rc)
        rc = check_ledger(&v, e);
    if (!rc)
        rc = check_records(&v, e) || check_scopes(&v, e) ? -1 : 0;
    if (!rc) {
        print(&v);
        if (json_array_size(v.found))
            rc = err_set(e, ERR_FORMAT, NULL, "the ledger has differences");
    }
    redis_close(v.r);
    pg_close(v.db);
    json_decref(v.found);
    return rc;
}

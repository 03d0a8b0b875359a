// `tiergate why REQUEST_ID`: the life of one request in order, from its row in the ledger; while it
// has none, from its record in Redis. Says which of the two it read. Changes nothing.
#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/money.h"
#include "base/pg.h"
#include "cli/commands.h"
#include "cli/settings.h"
#include "router/record.h"

#define MOMENT "'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'"

static const char ROW[] =
    "SELECT u.request_id, to_char(u.accepted_at AT TIME ZONE 'UTC', " MOMENT "), "
    "to_char(u.at AT TIME ZONE 'UTC', " MOMENT "), coalesce(t.name, u.tenant_id::text), "
    "coalesce(w.name, u.user_id::text), coalesce(k.public_id, u.key_id::text), u.endpoint, u.task, "
    "u.model, u.adapter, u.tier, u.trace->>'route', u.trace->>'gateway', u.trace->>'worker', "
    "u.outcome, u.trace->>'limited_by', (u.trace->>'granted')::bigint, "
    "(u.trace->>'held_tokens')::bigint, (u.trace->>'held_money')::bigint, u.queue_ms, u.attempts, "
    "u.prompt_tokens, u.cached_tokens, u.completion_tokens, (u.trace->>'steps')::bigint, "
    "(u.trace->>'queue_steps')::bigint, "
    "u.engine_us, u.first_token_ms, u.total_ms, u.money "
    "FROM usage u LEFT JOIN tenants t ON t.id = u.tenant_id LEFT JOIN users w ON w.id = u.user_id "
    "LEFT JOIN api_keys k ON k.id = u.key_id WHERE u.request_id = $1::uuid";

typedef enum column { // of ROW, in order; numbers from GRANTED on
    ID,
    ACCEPTED,
    SETTLED,
    TENANT,
    USER,
    KEY,
    ENDPOINT,
    TASK,
    MODEL,
    ADAPTER,
    TIER,
    ROUTE,
    GATEWAY,
    WORKER,
    OUTCOME,
    LIMITED_BY,
    GRANTED,
    HELD_TOKENS,
    HELD_MONEY,
    QUEUE_MS,
    ATTEMPTS,
    PROMPT,
    CACHED,
    COMPLETION,
    STEPS,
    QUEUE_STEPS,
    ENGINE_US,
    FIRST_TOKEN_MS,
    TOTAL_MS,
    MONEY,
    N_COLUMNS
} column;

static const char *const names[N_COLUMNS] = {
    "request_id", "accepted_at",   "settled_at",    "tenant",
    "user",       "key",           "endpoint",      "task",
    "model",      "adapter",       "tier",          "route",
    "gateway",    "worker",        "outcome",       "limited_by",
    "granted",    "held_tokens",   "held_money",    "queue_ms",
    "attempts",   "prompt_tokens", "cached_tokens", "completion_tokens",
    "steps",      "queue_steps",   "engine_us",     "first_token_ms",
    "total_ms",   "money",
};

static const char *money(int64_t nano) { // valid until the next call
    static char text[MONEY_TEXT];
    money_format(nano, text);
    return text;
}

// ---- a row

static void print_row_json(const pg_result *r) {
    json_t *o = json_pack("{s:s}", "state", "recorded");
    for (int c = 0; c < N_COLUMNS; c++) {
        const char *text = pg_text(r, 0, c);
        json_object_set_new(o, names[c],
                            !text          ? json_null()
                            : c >= GRANTED ? json_integer(pg_int(r, 0, c))
                                           : json_string(text));
    }
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(o);
}

static const char *text_of(const pg_result *r, column c) {
    const char *text = pg_text(r, 0, (int)c);
    return text && *text ? text : "unknown";
}

static void print_run(const pg_result *r) {
    long long total = pg_int(r, 0, TOTAL_MS);
    printf("queue        waited %lld ms in tier %s", pg_int(r, 0, QUEUE_MS), text_of(r, TIER));
    if (pg_text(r, 0, QUEUE_STEPS))
        printf(", %lld steps of its worker", pg_int(r, 0, QUEUE_STEPS));
    putchar('\n');
    printf("attempts     %lld, the last one by worker %s\n", pg_int(r, 0, ATTEMPTS),
           text_of(r, WORKER));
    printf("cache        %lld of %lld prompt tokens were there\n", pg_int(r, 0, CACHED),
           pg_int(r, 0, PROMPT));
    printf("steps        %lld that brought tokens; engine time %.1f ms\n", pg_int(r, 0, STEPS),
           (double)pg_int(r, 0, ENGINE_US) / 1000);
    if (pg_text(r, 0, FIRST_TOKEN_MS))
        printf("first token  %lld ms after acceptance\n", pg_int(r, 0, FIRST_TOKEN_MS));
    else
        printf("first token  none was made\n");
    printf("end          %lld ms after acceptance: %s", total, text_of(r, OUTCOME));
    if (pg_text(r, 0, LIMITED_BY))
        printf(", cut by the limit of %s", quota_kind_words(pg_text(r, 0, LIMITED_BY)));
    putchar('\n');
}

static void print_row(const pg_result *r) {
    printf("request      %s: %s\n", text_of(r, ID), text_of(r, OUTCOME));
    printf("accepted     %s by gateway %s\n", text_of(r, ACCEPTED), text_of(r, GATEWAY));
    printf("who          tenant %s, user %s, key %s\n", text_of(r, TENANT), text_of(r, USER),
           text_of(r, KEY));
    printf("route        %s, task %s: model %s%s%s (%s)\n", text_of(r, ENDPOINT), text_of(r, TASK),
           text_of(r, MODEL), *pg_text(r, 0, ADAPTER) ? " with adapter " : "",
           pg_text(r, 0, ADAPTER), text_of(r, ROUTE));
    if (pg_text(r, 0, HELD_TOKENS))
        printf("hold         %lld tokens (%lld per choice granted), money %s\n",
               pg_int(r, 0, HELD_TOKENS), pg_int(r, 0, GRANTED), money(pg_int(r, 0, HELD_MONEY)));
    print_run(r);
    printf("settled      %s: %lld + %lld tokens, money %s\n", text_of(r, SETTLED),
           pg_int(r, 0, PROMPT), pg_int(r, 0, COMPLETION), money(pg_int(r, 0, MONEY)));
    printf("row          committed\n");
}

// ---- a record

// As Postgres writes it: 2026-11-24T10:00:00.123Z.
static void format_moment(int64_t unix_ms, char out[40]) {
    struct tm t;
    time_t s = (time_t)(unix_ms / 1000);
    gmtime_r(&s, &t);
    size_t n = strftime(out, 40, "%Y-%m-%dT%H:%M:%S", &t);
    snprintf(out + n, 40 - n, ".%03dZ", (int)(unix_ms % 1000));
}

static void print_record_json(const char *id, const quota_record *k, bool has_gateway) {
    const usage_meta *m = &k->meta;
    char gateway[20], accepted[40], held[40];
    format_moment(m->accepted_ms, accepted);
    format_moment(k->held_ms, held);
    snprintf(gateway, sizeof gateway, "%016" PRIx64, k->gateway);
    json_t *o = json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:b,s:I,s:I,s:I,s:s,s:i,s:i,s:b}",
        "state",
        !k->is_open      ? "settled"
        : k->is_accepted ? "open"
                         : "held",
        "request_id", id, "accepted_at", accepted, "tenant", m->tenant, "user", m->user, "key",
        m->key, "endpoint", m->endpoint, "task", m->task, "model", m->model, "adapter", m->adapter,
        "tier", m->tier, "route", m->route, "gateway", gateway, "gateway_alive", has_gateway,
        "granted", (json_int_t)k->granted, "held_tokens", (json_int_t)k->held_tokens, "held_money",
        (json_int_t)k->held_money, "held_since", held, "prompt_tokens", k->prompt, "sent_tokens",
        k->sent, "prefilled", k->prefilled);
    if (!k->is_open)
        json_object_set_new(o, "outcome", json_string(k->settled.outcome));
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(o);
}

static void print_record(const char *id, const quota_record *k, bool has_gateway) {
    const usage_meta *m = &k->meta;
    char accepted[40];
    format_moment(m->accepted_ms, accepted);
    printf("request      %s: %s\n", id,
           !k->is_open ? "settled, its row is not committed"
           : k->is_accepted
               ? "open"
               : "held, not accepted; released without a row if its gateway forgets it");
    printf("%-12s %s by gateway %016" PRIx64 ", which is %s\n",
           k->is_accepted ? "accepted" : "held", accepted, k->gateway,
           has_gateway ? "alive" : "gone");
    printf("who          tenant %s, user %s, key %s\n", m->tenant, m->user, m->key);
    printf("route        %s, task %s: model %s%s%s (%s)\n", m->endpoint, m->task, m->model,
           *m->adapter ? " with adapter " : "", m->adapter, *m->route ? m->route : "unknown");
    printf("hold         %" PRId64 " tokens (%d per choice granted), money %s\n", k->held_tokens,
           k->granted, money(k->held_money));
    printf("so far       prompt of %d tokens %s, %d tokens handed to the client\n", k->prompt,
           k->prefilled ? "prefilled" : "not prefilled yet", k->sent);
    if (!k->is_open)
        printf("settled      %d + %d tokens, money %s: %s\n", k->settled.prompt,
               k->settled.completion, money(k->settled.money), k->settled.outcome);
    else if (!has_gateway)
        printf("next         another gateway's sweeper closes it within 25 s\n");
}

static int show_record(const config *c, const char *id, bool json, bool *found, err *e) {
    redis *r = NULL;
    quota_record k;
    bool is_alive = false;
    *found = false;
    if (!*c->redis_address)
        return err_set(e, ERR_NOT_FOUND, "id", "no row of request %s in the ledger", id);
    if (redis_connect(c->redis_address, 2000, &r, e))
        return -1;
    int rc = record_find(r, id, &k, found, e);
    if (!rc && *found)
        rc = record_gateway_is_alive(r, k.gateway, &is_alive, e);
    if (!rc && *found)
        (json ? print_record_json : print_record)(id, &k, is_alive);
    redis_close(r);
    return rc;
}

// ---- the command

static bool is_uuid(const char *s) {
    for (int i = 0; i < 36; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23 ? s[i] != '-' : !isxdigit((unsigned char)s[i]))
            return false;
    return s[36] == '\0';
}

static int show_row(pg *db, const char *id, bool json, bool *found, err *e) {
    pg_result *r = NULL;
    int rc = pg_query(db, ROW, 1, &id, &r, e);
    *found = !rc && pg_rows(r) == 1;
    if (*found)
        (json ? print_row_json : print_row)(r);
    pg_result_free(r);
    return rc;
}

// The row comes before its record goes: who finds neither looks for the row again.
static int show(const config *c, const char *id, bool json, err *e) {
    pg *db = NULL;
    bool found = false;
    if (pg_connect(c->postgres_url, &db, e))
        return -1;
    int rc = show_row(db, id, json, &found, e);
    if (!rc && !found)
        rc = show_record(c, id, json, &found, e);
    if (!rc && !found)
        rc = show_row(db, id, json, &found, e);
    pg_close(db);
    if (!rc && !found)
        rc = err_set(e, ERR_NOT_FOUND, "id",
                     "request %s is neither in the ledger nor open: it was never accepted "
                     "(refused requests leave no row)",
                     id);
    return rc;
}

int command_why(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    bool json = false, help;
    const char *words[1];
    char id[40];
    int n_words;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"json", OPTION_FLAG, &json, NULL, "print JSON"},
    };
    const int n_rows = sizeof rows / sizeof *rows;
    if (options_parse(rows, n_rows, argc, argv, words, 1, &n_words, &help, e))
        return -1;
    if (help) {
        buf text = {0};
        options_help(rows, n_rows, &text);
        printf("tiergate why REQUEST_ID [options]\n\n%s", text.data);
        buf_release(&text);
        return 0;
    }
    if (!n_words || strlen(words[0]) >= sizeof id || !is_uuid(words[0]))
        return err_set(e, ERR_INVALID, "id",
                       "give the id of a request as its answer's x-request-id said it");
    for (size_t i = 0; i <= strlen(words[0]); i++)
        id[i] = (char)tolower((unsigned char)words[0][i]);
    if (settings_load(&s, &c, e) || settings_need_postgres(&c, e))
        return -1;
    return show(&c, id, json, e);
}

// `tiergate quota set|show`: the limits of a tenant, a user, a key or a model, straight in the
// database. Gateways hear of a change at once; what is held stays, the next request sees the new
// limit.
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/money.h"
#include "base/pg.h"
#include "cli/commands.h"
#include "cli/settings.h"

typedef struct kind {
    const char *option, *column, *help;
} kind;

static const kind kinds[] = {
    {"requests-per-minute", "requests_per_minute", "limit, or none"},
    {"tokens-per-minute", "tokens_per_minute", "limit, or none"},
    {"concurrent-requests", "concurrent_requests", "limit, or none"},
    {"tokens-per-day", "tokens_per_day", "limit, or none"},
    {"tokens-per-month", "tokens_per_month", "limit, or none"},
    {"money-per-month", "money_per_month", "limit as an amount (12.50), or none"},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

typedef struct quota_options {
    settings s;
    const char *tenant, *user, *key, *model;
    const char *limit[N_KINDS];
    bool json;
} quota_options;

static int one_text(pg *db, const char *sql, int n, const char *const *params, char *out,
                    size_t size, const char *param, const char *missing, err *e) {
    pg_result *r = NULL;
    if (pg_query(db, sql, n, params, &r, e))
        return -1;
    int rc = 0;
    if (pg_rows(r) == 1)
        snprintf(out, size, "%s", pg_text(r, 0, 0));
    else
        rc = err_set(e, ERR_NOT_FOUND, param, "%s", missing);
    pg_result_free(r);
    return rc;
}

// "t", "u:<id>", "k:<id>" or "m:<model>".
static int find_scope(const quota_options *o, pg *db, const char *tenant_id, char scope[80],
                      err *e) {
    if ((o->user != NULL) + (o->key != NULL) + (o->model != NULL) > 1)
        return err_set(e, ERR_INVALID, "scope",
                       "give one of --user, --key and --model, or none for the whole tenant");
    snprintf(scope, 80, "t");
    if (o->user)
        return one_text(db, "SELECT 'u:' || id FROM users WHERE tenant_id = $1 AND name = $2", 2,
                        (const char *[]){tenant_id, o->user}, scope, 80, "user",
                        "no user of this name in the tenant", e);
    if (o->key)
        return one_text(db,
                        "SELECT 'k:' || k.id FROM api_keys k JOIN users u ON u.id = k.user_id "
                        "WHERE u.tenant_id = $1 AND (k.public_id = $2 OR k.id::text = $2)",
                        2, (const char *[]){tenant_id, o->key}, scope, 80, "key",
                        "no key with this id in the tenant", e);
    if (o->model && strlen(o->model) > 63)
        return err_set(e, ERR_INVALID, "model", "a model's name has at most 63 bytes");
    if (o->model)
        snprintf(scope, 80, "m:%s", o->model);
    return 0;
}

static bool is_money(const kind *k) { return !strcmp(k->option, "money-per-month"); }

static int check_limit(const kind *k, const char *text, err *e) {
    char *end;
    int64_t nano;
    if (is_money(k) && strcmp(text, "none") && money_parse(text, &nano, e))
        return err_wrap(e, "--%s", k->option);
    if (is_money(k))
        return 0;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (!strcmp(text, "none") ||
        (!errno && end != text && !*end && v >= 0 && v <= 9007199254740991LL))
        return 0;
    return err_set(e, ERR_INVALID, k->option, "--%s takes a number from 0, or none, not '%s'",
                   k->option, text);
}

// All of it or nothing: a gateway never sees half of a change.
static int write_limits(const quota_options *o, pg *db, const char *tenant_id, const char *scope,
                        err *e) {
    if (pg_exec(db, "BEGIN", e) ||
        pg_query(db, "INSERT INTO limits (tenant_id, scope) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                 2, (const char *[]){tenant_id, scope}, NULL, e))
        return -1;
    for (int i = 0; i < N_KINDS; i++) {
        char sql[160];
        snprintf(
            sql, sizeof sql,
            "UPDATE limits SET %s = $3, updated_at = now() WHERE tenant_id = $1 AND scope = $2",
            kinds[i].column);
        const char *value = o->limit[i] && strcmp(o->limit[i], "none") ? o->limit[i] : NULL;
        char nano_text[24];
        int64_t nano;
        if (value && is_money(&kinds[i]) && !money_parse(value, &nano, e)) {
            snprintf(nano_text, sizeof nano_text, "%" PRId64, nano);
            value = nano_text;
        }
        if (o->limit[i] && pg_query(db, sql, 3, (const char *[]){tenant_id, scope, value}, NULL, e))
            return -1;
    }
    return pg_exec(db, "COMMIT", e);
}

static int set(const quota_options *o, pg *db, const char *tenant_id, const char *scope, err *e) {
    int n = 0;
    for (int i = 0; i < N_KINDS; i++) {
        if (o->limit[i] && check_limit(&kinds[i], o->limit[i], e))
            return -1;
        n += o->limit[i] != NULL;
    }
    if (!n)
        return err_set(e, ERR_INVALID, "limit",
                       "say which limit to set, for example --tokens-per-day 1000000");
    return write_limits(o, db, tenant_id, scope,
                        e); // the connection ends with the command, and what failed with it
}

// Limits beside what the ledger says was used of them today and this month (UTC).
static const char SHOW[] =
    "SELECT l.scope, coalesce(u.name, k.public_id, substr(l.scope, 3)), l.requests_per_minute, "
    "l.tokens_per_minute, "
    "l.concurrent_requests, l.tokens_per_day, l.tokens_per_month, l.money_per_month, "
    "coalesce((SELECT sum(tokens) FROM quota_used q WHERE q.tenant_id = l.tenant_id AND q.scope = "
    "l.scope "
    "  AND day = (now() AT TIME ZONE 'UTC')::date), 0), "
    "coalesce((SELECT sum(tokens) FROM quota_used q WHERE q.tenant_id = l.tenant_id AND q.scope = "
    "l.scope "
    "  AND day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date), 0), "
    "coalesce((SELECT sum(money) FROM quota_used q WHERE q.tenant_id = l.tenant_id AND q.scope = "
    "l.scope "
    "  AND day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date), 0) "
    "FROM limits l LEFT JOIN users u ON l.scope = 'u:' || u.id LEFT JOIN api_keys k ON l.scope = "
    "'k:' || k.id "
    "WHERE l.tenant_id = $1 ORDER BY l.scope";
static const char *const show_names[] = {"scope",
                                         "name",
                                         "requests_per_minute",
                                         "tokens_per_minute",
                                         "concurrent_requests",
                                         "tokens_per_day",
                                         "tokens_per_month",
                                         "money_per_month",
                                         "tokens_used_today",
                                         "tokens_used_this_month",
                                         "money_used_this_month"};
enum { N_SHOWN = sizeof show_names / sizeof *show_names };

static void print_json(const pg_result *r) {
    json_t *all = json_array();
    for (int i = 0; i < pg_rows(r); i++) {
        json_t *row = json_object();
        for (int c = 0; c < N_SHOWN; c++) {
            const char *text = pg_text(r, i, c);
            json_object_set_new(row, show_names[c],
                                !text   ? json_null()
                                : c < 2 ? json_string(text)
                                        : json_integer(pg_int(r, i, c)));
        }
        json_array_append_new(all, row);
    }
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

static void print_value(const pg_result *r, int i, int c) {
    char amount[MONEY_TEXT];
    const char *text = pg_text(r, i, c);
    if (text && !strncmp(show_names[c], "money", 5)) {
        money_format(pg_int(r, i, c), amount);
        text = amount;
    }
    if (text)
        printf("  %-24s %s\n", show_names[c], text);
}

static void print_lines(const pg_result *r) {
    if (!pg_rows(r))
        puts("no limits");
    for (int i = 0; i < pg_rows(r); i++) {
        const char *scope = pg_text(r, i, 0);
        printf("%s%s\n",
               *scope == 't'   ? "tenant"
               : *scope == 'u' ? "user "
               : *scope == 'k' ? "key "
                               : "model ",
               *scope == 't' ? "" : pg_text(r, i, 1));
        for (int c = 2; c < N_SHOWN; c++)
            print_value(r, i, c);
    }
}

static int show(const quota_options *o, pg *db, const char *tenant_id, err *e) {
    pg_result *r = NULL;
    if (pg_query(db, SHOW, 1, &tenant_id, &r, e))
        return -1;
    (o->json ? print_json : print_lines)(r);
    pg_result_free(r);
    return 0;
}

static int run(const quota_options *o, const char *action, pg *db, err *e) {
    char tenant_id[40], scope[80];
    if (!o->tenant)
        return err_set(e, ERR_INVALID, "tenant", "say whose with --tenant NAME");
    if (one_text(db, "SELECT id FROM tenants WHERE name = $1", 1, &o->tenant, tenant_id,
                 sizeof tenant_id, "tenant", "no tenant of this name", e) ||
        find_scope(o, db, tenant_id, scope, e))
        return -1;
    if (!strcmp(action, "set") && set(o, db, tenant_id, scope, e))
        return -1;
    return show(o, db, tenant_id, e);
}

int command_quota(int argc, char **argv, err *e) {
    quota_options o = {0};
    const option_row fixed[] = {
        SETTINGS_ROWS(&o.s),
        {"tenant", OPTION_TEXT, &o.tenant, "NAME", "whose (required)"},
        {"user", OPTION_TEXT, &o.user, "NAME", "set: of this user"},
        {"key", OPTION_TEXT, &o.key, "ID", "set: of this key"},
        {"model", OPTION_TEXT, &o.model, "NAME", "set: of the tenant's use of this model"},
        {"json", OPTION_FLAG, &o.json, NULL, "print JSON"},
    };
    enum { N_FIXED = sizeof fixed / sizeof *fixed };
    option_row rows[N_FIXED + N_KINDS];
    const char *words[1];
    bool help;
    int n_words;
    pg *db = NULL;
    config c;
    memcpy(rows, fixed, sizeof fixed);
    for (int i = 0; i < N_KINDS; i++)
        rows[N_FIXED + i] =
            (option_row){kinds[i].option, OPTION_TEXT, &o.limit[i], "N", kinds[i].help};
    if (options_parse(rows, N_FIXED + N_KINDS, argc, argv, words, 1, &n_words, &help, e))
        return -1;
    if (help) {
        buf text = {0};
        options_help(rows, N_FIXED + N_KINDS, &text);
        printf("tiergate quota set|show --tenant NAME [options]\n\n%s", text.data);
        buf_release(&text);
        return 0;
    }
    if (!n_words || (strcmp(words[0], "set") && strcmp(words[0], "show")))
        return err_set(e, ERR_INVALID, "action", "say `quota set` or `quota show`");
    if (settings_load(&o.s, &c, e) || pg_connect(c.postgres_url, &db, e))
        return -1;
    int rc = run(&o, words[0], db, e);
    pg_close(db);
    return rc;
}

// `tiergate usage`: what the ledger says, summed by tenant, model and day, or request by request.
// `tiergate usage verify` is in usage_verify.c.
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include "base/pg.h"
#include "cli/commands.h"
#include "cli/settings.h"
#include "cli/usage_verify.h"

#define N(a) (int)(sizeof a / sizeof *a)

typedef struct column {
    const char *name;
    int width;
    bool number;
} column;

typedef struct report {
    const char *sql; // $1 tenant or null, $2 days, $3 limit
    const column *columns;
    int n_columns;
} report;

static const column sum_columns[] = {
    {"day", 11, false},          {"tenant", 16, false},           {"model", 26, false},
    {"outcome", 14, false},      {"requests", 9, true},           {"prompt_tokens", 14, true},
    {"cached_tokens", 14, true}, {"completion_tokens", 18, true}, {"money_nano", 14, true},
};
static const report by_day = {
    "SELECT to_char(u.at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day, coalesce(t.name, "
    "u.tenant_id::text), u.model, "
    "u.outcome, count(*), sum(u.prompt_tokens), sum(u.cached_tokens), sum(u.completion_tokens), "
    "sum(u.money) "
    "FROM usage u LEFT JOIN tenants t ON t.id = u.tenant_id "
    "WHERE ($1::text IS NULL OR t.name = $1) AND u.at > now() - $2::int * interval '1 day' "
    "GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4 LIMIT $3::int",
    sum_columns, sizeof sum_columns / sizeof *sum_columns};

static const column row_columns[] = {
    {"request_id", 37, false},   {"at", 25, false},           {"tenant", 16, false},
    {"endpoint", 12, false},     {"model", 26, false},        {"outcome", 14, false},
    {"prompt_tokens", 14, true}, {"cached_tokens", 14, true}, {"completion_tokens", 18, true},
    {"money_nano", 12, true},    {"queue_ms", 9, true},       {"first_token_ms", 15, true},
    {"total_ms", 9, true},       {"engine_us", 10, true},     {"attempts", 9, true},
    {"adapter", 40, false},
};
static const report by_request = {
    "SELECT u.request_id, to_char(u.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), "
    "coalesce(t.name, u.tenant_id::text), u.endpoint, u.model, u.outcome, u.prompt_tokens, "
    "u.cached_tokens, "
    "u.completion_tokens, u.money, u.queue_ms, u.first_token_ms, u.total_ms, u.engine_us, "
    "u.attempts, u.adapter "
    "FROM usage u LEFT JOIN tenants t ON t.id = u.tenant_id "
    "WHERE ($1::text IS NULL OR t.name = $1) AND u.at > now() - $2::int * interval '1 day' "
    "ORDER BY u.at DESC, u.request_id DESC LIMIT $3::int",
    row_columns, sizeof row_columns / sizeof *row_columns};

static void print_json(const report *what, const pg_result *r) {
    json_t *all = json_array();
    for (int i = 0; i < pg_rows(r); i++) {
        json_t *row = json_object();
        for (int c = 0; c < what->n_columns; c++) {
            const char *text = pg_text(r, i, c);
            json_t *value = !text                     ? json_null()
                            : what->columns[c].number ? json_integer(pg_int(r, i, c))
                                                      : json_string(text);
            json_object_set_new(row, what->columns[c].name, value);
        }
        json_array_append_new(all, row);
    }
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

static void print_table(const report *what, const pg_result *r) {
    for (int c = 0; c < what->n_columns; c++)
        printf(what->columns[c].number ? "%*s " : "%-*s ", what->columns[c].width,
               what->columns[c].name);
    putchar('\n');
    for (int i = 0; i < pg_rows(r); i++) {
        for (int c = 0; c < what->n_columns; c++) {
            const char *text = pg_text(r, i, c);
            printf(what->columns[c].number ? "%*s " : "%-*s ", what->columns[c].width,
                   text ? text : "-");
        }
        putchar('\n');
    }
}

int command_usage(int argc, char **argv, err *e) {
    settings s = {0};
    config c;
    const char *tenant = NULL;
    int64_t days = 31, limit = 1000;
    bool json = false, requests = false;
    const option_row rows[] = {
        SETTINGS_ROWS(&s),
        {"tenant", OPTION_TEXT, &tenant, "NAME", "only this tenant's"},
        {"days", OPTION_INT, &days, "N", "how far back (default 31)"},
        {"limit", OPTION_INT, &limit, "N", "most lines (default 1000)"},
        {"requests", OPTION_FLAG, &requests, NULL, "request by request, the newest first"},
        {"json", OPTION_FLAG, &json, NULL, "print JSON"},
    };
    const char *words[1];
    bool help;
    int n_words;
    if (options_parse(rows, N(rows), argc, argv, words, 1, &n_words, &help, e))
        return -1;
    if (help) {
        buf text = {0};
        options_help(rows, N(rows), &text);
        printf("tiergate usage [verify] [options]\n\n%s", text.data);
        buf_release(&text);
        return 0;
    }
    if (n_words && strcmp(words[0], "verify"))
        return err_set(e, ERR_INVALID, "action", "the only action is verify, not '%s'", words[0]);
    if (days < 1 || days > 36500 || limit < 1 || limit > 10000000)
        return err_set(e, ERR_INVALID, "days", "--days is 1 to 36500, --limit 1 to 10000000");
    char days_text[16], limit_text[16];
    snprintf(days_text, sizeof days_text, "%d", (int)days);
    snprintf(limit_text, sizeof limit_text, "%d", (int)limit);
    const report *what = requests ? &by_request : &by_day;
    pg *db = NULL;
    pg_result *r = NULL;
    if (settings_load(&s, &c, e) || settings_need_postgres(&c, e))
        return -1;
    if (n_words)
        return usage_verify(&c, json, e);
    if (pg_connect(c.postgres_url, &db, e))
        return -1;
    pg_set_limit(db, 0); // a long report may take its time
    int rc = pg_query(db, what->sql, 3, (const char *[]){tenant, days_text, limit_text}, &r, e);
    if (!rc)
        (json ? print_json : print_table)(what, r);
    pg_result_free(r);
    pg_close(db);
    return rc;
}

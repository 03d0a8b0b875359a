// Limits in memory, a row per tenant and scope. Any thread. Counts nothing.
#include "router/limits.h"
#include "base/pg_table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct row {
    char tenant[40], scope[72];
    int64_t limit[N_QUOTA_KINDS]; // -1: none
} row;

struct limits {
    pg_table *rows;
};

static int by_scope(const void *a, const void *b) {
    const row *x = a, *y = b;
    int order = strcmp(x->tenant, y->tenant);
    return order ? order : strcmp(x->scope, y->scope);
}

static void fill_row(const pg_result *r, int i, void *to) {
    row *out = to;
    pg_table_text(r, i, 0, out->tenant, sizeof out->tenant);
    pg_table_text(r, i, 1, out->scope, sizeof out->scope);
    for (int k = 0; k < N_QUOTA_KINDS; k++)
        out->limit[k] = pg_text(r, i, 2 + k) ? pg_int(r, i, 2 + k) : -1;
}

static const pg_table_spec table = {
    .sql = "SELECT tenant_id, scope, requests_per_minute, tokens_per_minute, concurrent_requests, "
           "tokens_per_day, tokens_per_month, money_per_month FROM limits", // order of quota_kind
    .channel = "limits",
    .row_bytes = sizeof(row),
    .fill = fill_row,
    .order = by_scope,
};

int limits_open(const char *postgres_url, limits **out, err *e) {
    limits *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    if (pg_table_open(postgres_url, &table, &l->rows, e)) {
        free(l);
        return -1;
    }
    *out = l;
    return 0;
}

void limits_close(limits *l) {
    if (!l)
        return;
    pg_table_close(l->rows);
    free(l);
}

static bool find(const limits *l, const usage_meta *m, char letter, row *found) {
    row key = {0};
    snprintf(key.tenant, sizeof key.tenant, "%s", m->tenant);
    usage_scope_name(m, letter, key.scope, sizeof key.scope);
    return pg_table_find(l->rows, &key, found);
}

void limits_apply(const limits *l, usage_meta *m, quota_limits *out) {
    int n = 0;
    row found;
    for (const char *letter = "tukm"; *letter; letter++) {
        if (!find(l, m, *letter, &found))
            continue;
        memcpy(out->limit[n], found.limit, sizeof found.limit);
        m->scopes[n++] = *letter;
    }
    m->scopes[n] = 0;
}

void limits_refresh(const limits *l, const usage_meta *m, quota_limits *out) {
    row found;
    for (int i = 0; m->scopes[i]; i++)
        if (find(l, m, m->scopes[i], &found))
            memcpy(out->limit[i], found.limit, sizeof found.limit);
}

// Assignments in memory: a table kept true by LISTEN, joined with the catalogue when asked. Any
// thread. Does not know keys or quotas.
#include "router/assign.h"
#include "base/pg_table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct row {
    char tenant[40], name[64], model[64], adapter[64];
} row;

struct assign {
    const catalogue *c;
    pg_table *rows;
};

static int by_name(const void *a, const void *b) {
    const row *x = a, *y = b;
    int order = strcmp(x->tenant, y->tenant);
    return order ? order : strcmp(x->name, y->name);
}

static void fill_row(const pg_result *r, int i, void *to) {
    row *out = to;
    pg_table_text(r, i, 0, out->tenant, sizeof out->tenant);
    pg_table_text(r, i, 1, out->name, sizeof out->name);
    pg_table_text(r, i, 2, out->model, sizeof out->model);
    pg_table_text(r, i, 3, out->adapter, sizeof out->adapter);
}

static const pg_table_spec assignments = {
    .sql = "SELECT tenant_id, name, model, adapter FROM assignments",
    .channel = "assignments",
    .row_bytes = sizeof(row),
    .fill = fill_row,
    .order = by_name,
};

int assign_open(const char *postgres_url, const catalogue *c, assign **out, err *e) {
    assign *a = calloc(1, sizeof *a);
    if (!a)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    a->c = c;
    if (pg_table_open(postgres_url, &assignments, &a->rows, e)) {
        free(a);
        return -1;
    }
    *out = a;
    return 0;
}

void assign_close(assign *a) {
    if (!a)
        return;
    pg_table_close(a->rows);
    free(a);
}

static bool fill_target(const assign *a, const row *from, assign_target *out) {
    *out = (assign_target){.model = catalogue_find(a->c, from->model)};
    memcpy(out->name, from->name, sizeof out->name);
    memcpy(out->adapter, from->adapter, sizeof out->adapter);
    return out->model != NULL;
}

int assign_find(const assign *a, const char *tenant, const char *name, assign_target *out, err *e) {
    row key = {0}, found;
    if (strlen(name) < sizeof key.name) {
        snprintf(key.tenant, sizeof key.tenant, "%s", tenant);
        snprintf(key.name, sizeof key.name, "%s", name);
        if (pg_table_find(a->rows, &key, &found) && fill_target(a, &found, out))
            return 0;
    }
    if (catalogue_find(a->c, name))
        return err_set(e, ERR_MODEL_DENIED, "model", "this key may not use the model '%.64s'",
                       name);
    return err_set(e, ERR_MODEL_UNKNOWN, "model", "there is no model '%.64s'", name);
}

typedef struct listing {
    const assign *a;
    const char *tenant;
    assign_target *out;
    int n, max;
} listing;

static bool list_one(void *ctx, const void *r) {
    listing *l = ctx;
    const row *from = r;
    if (!strcmp(from->tenant, l->tenant) && fill_target(l->a, from, &l->out[l->n]))
        l->n++;
    return l->n < l->max;
}

int assign_list(const assign *a, const char *tenant, assign_target *out, int max) {
    listing l = {.a = a, .tenant = tenant, .out = out, .max = max};
    if (max > 0)
        pg_table_each(a->rows, list_one, &l);
    return l.n;
}

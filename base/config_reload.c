// Taking over a changed configuration at run time. Compares row by row; only rows marked `reload`
// change in place. Called by the thread that owns the config. A file that does not load changes
// nothing.
#include "base/config_internal.h"
#include <stdlib.h>
#include <string.h>

typedef struct change {
    int *n_changed;
    buf *needs_restart;
} change;

static void need_restart(change *to, const char *section, const char *model, const char *key) {
    if (to->needs_restart->len)
        buf_puts(to->needs_restart, ", ");
    buf_puts(to->needs_restart, section);
    if (model)
        buf_printf(to->needs_restart, ".%s", model);
    if (key)
        buf_printf(to->needs_restart, ".%s", key);
}

// Port 0 asks for any port: the one that listens will do.
static bool is_same(const config_row *row, const void *now, const void *next) {
    const config_listen *old_address = now, *new_address = next;
    if (row->type == CONFIG_LISTEN && new_address->port == 0)
        return strcmp(old_address->host, new_address->host) == 0;
    return memcmp(now, next, row->size) == 0;
}

// now and next: two configs, or two config_models of one name.
static void compare(change *to, const config_row *row, const char *model, void *now,
                    const void *next) {
    void *old_field = (char *)now + row->offset;
    const void *new_field = (const char *)next + row->offset;
    if (is_same(row, old_field, new_field))
        return;
    if (!row->reload) {
        need_restart(to, row->section, model, row->name);
        return;
    }
    memcpy(old_field, new_field, row->size);
    ++*to->n_changed;
}

static void compare_models(change *to, config *now, const config *next) {
    for (int i = 0; i < now->n_models; i++) {
        config_model *m = &now->models[i];
        const config_model *other = config_find_model(next, m->name);
        if (!other)
            need_restart(to, "model", m->name, NULL);
        for (int k = 0; other && k < config_n_rows; k++)
            if (strcmp(config_rows[k].section, "model") == 0)
                compare(to, &config_rows[k], m->name, m, other);
    }
    for (int i = 0; i < next->n_models; i++)
        if (!config_find_model(now, next->models[i].name))
            need_restart(to, "model", next->models[i].name, NULL);
}

int config_reload(config *c, const char *path, const char *const *sets, int n_sets, int *n_changed,
                  buf *needs_restart, err *e) {
    change to = {n_changed, needs_restart};
    config *next = malloc(sizeof *next);
    *n_changed = 0;
    if (!next)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    int rc = config_load(next, path, sets, n_sets, e);
    if (!rc) {
        for (int i = 0; i < config_n_rows; i++)
            if (strcmp(config_rows[i].section, "model") != 0)
                compare(&to, &config_rows[i], NULL, c, next);
        compare_models(&to, c, next);
    }
    free(next);
    return rc;
}

// The models of the configuration, opened in its order. Owns the opened models; the configuration
// is borrowed.
#include "model/catalogue.h"
#include <stdlib.h>
#include <string.h>

struct catalogue {
    int n;
    catalogue_entry entries[CONFIG_MODELS];
};

static int entry_open(catalogue_entry *entry, const config_model *m, err *e) {
    if (model_open(m->path, m->template_name, &entry->model, e))
        return err_wrap(e, "model %s", m->name);
    int own = model_get_shape(entry->model)->context;
    entry->config = m;
    entry->max_context = m->max_context > 0 && m->max_context < own ? (int)m->max_context : own;
    return 0;
}

int catalogue_open(const config *c, catalogue **out, err *e) {
    catalogue *cat = calloc(1, sizeof *cat);
    if (!cat)
        return err_set(e, ERR_INTERNAL, NULL, "no memory for the model catalogue");
    for (int i = 0; i < c->n_models; i++) {
        if (entry_open(&cat->entries[i], &c->models[i], e)) {
            catalogue_close(cat);
            return -1;
        }
        cat->n++;
    }
    *out = cat;
    return 0;
}

void catalogue_close(catalogue *c) {
    if (!c)
        return;
    for (int i = 0; i < c->n; i++)
        model_close(c->entries[i].model);
    free(c);
}

int catalogue_count(const catalogue *c) { return c->n; }

const catalogue_entry *catalogue_at(const catalogue *c, int i) { return &c->entries[i]; }

const catalogue_entry *catalogue_find(const catalogue *c, const char *name) {
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->entries[i].config->name, name))
            return &c->entries[i];
    return NULL;
}

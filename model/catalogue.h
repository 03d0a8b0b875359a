// The models an installation serves, opened once per process from the configuration. Read-only
// after open: any thread.
#ifndef MODEL_CATALOGUE_H
#define MODEL_CATALOGUE_H
#include "base/config.h"
#include "base/err.h"
#include "model/model.h"

typedef struct catalogue_entry {
    const config_model *config; // name, tier, prices, limits; borrowed from the configuration
    model *model;
    int max_context; // the configured limit or the model's own
} catalogue_entry;

typedef struct catalogue catalogue;

// Opens every [model NAME] of c, which must outlive the catalogue. An error names the model and its
// path.
int catalogue_open(const config *c, catalogue **out, err *e);
void catalogue_close(catalogue *c);
int catalogue_count(const catalogue *c);
const catalogue_entry *catalogue_at(const catalogue *c, int i);
const catalogue_entry *catalogue_find(const catalogue *c, const char *name); // NULL: none

#endif

// Which models a tenant may use, by what names: a snapshot of the table `assignments`, read at
// start and again on NOTIFY assignments. Any thread asks, under a read lock for the time of one
// call.
#ifndef ROUTER_ASSIGN_H
#define ROUTER_ASSIGN_H
#include <stdbool.h>
#include "base/err.h"
#include "base/pg.h"
#include "model/catalogue.h"

typedef struct assign assign; // process-wide, any thread

typedef struct assign_target {
    const catalogue_entry *model;
    char name[64];    // the name it is listed and called by (alias or the model's own id)
    char adapter[64]; // "" = none
} assign_target;

// Without any row for a tenant it may use no model. ERR_DEPENDENCY at the first read when Postgres
// is away.
int assign_open(const char *postgres_url, const catalogue *c, assign **out, err *e);
void assign_close(assign *a);
// The target of a name for a tenant. ERR_MODEL_UNKNOWN (no such model here or not visible) or
// ERR_MODEL_DENIED (exists, not assigned).
int assign_find(const assign *a, const char *tenant, const char *name, assign_target *out, err *e);
// All names of a tenant, in a stable order; at most max are written, the count is returned.
int assign_list(const assign *a, const char *tenant, assign_target *out, int max);

#endif

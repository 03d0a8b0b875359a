// The models that were added: their files and sums in the database (migrations/0004_models.sql).
// All of them print to stdout, as JSON when json is set, and tell the progress of long hashing on
// stderr.
#ifndef CLI_MODEL_REGISTRY_H
#define CLI_MODEL_REGISTRY_H
#include <stdbool.h>
#include "base/err.h"
#include "base/pg.h"

typedef struct registry_options {
    const char *name;     // add: NULL: from the path; ls, verify: NULL: all
    const char *tier;     // add: "" = none yet
    const char *template; // add: "" = the model's own
    bool json;
    bool unassign; // rm: take its assignments away too
} registry_options;

// Opens the model at path as a worker would, hashes every file that is read, and records both.
// ERR_INVALID: the name is not possible or taken; otherwise what model_open says.
int registry_add(pg *db, const char *path, const registry_options *o, err *e);
int registry_list(pg *db, const registry_options *o, err *e);
// Hashes again and opens again. ERR_FORMAT when anything differs, after all differences were
// printed.
int registry_verify(pg *db, const registry_options *o, err *e);
// Forgets a model; its files stay. ERR_INVALID while a tenant may use it.
int registry_remove(pg *db, const registry_options *o, err *e);

#endif

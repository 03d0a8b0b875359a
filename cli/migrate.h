// Applies migrations/NNNN_name.sql, which the binary carries, in order, each in a transaction of
// its own, under an advisory lock: several may start at once. What was applied stands in
// schema_migrations with its SHA-256; a file that changed after it was applied is an error.
#ifndef CLI_MIGRATE_H
#define CLI_MIGRATE_H
#include "base/err.h"

// *n_applied counts those applied now.
int migrate_run(const char *postgres_url, int *n_applied, err *e);

#endif

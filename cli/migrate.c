// `tiergate migrate` and the migrations of `tiergate up`. Owns one connection while it runs.
#include "cli/migrate.h"
#include <stdio.h>
#include <string.h>
#include "base/id.h"
#include "base/pg.h"
#include "base/secret.h"
#include "cli/migrations.h"

// Any constant of ours: "tiergate" in ASCII.
static const char LOCK[] = "SELECT pg_advisory_lock(8388347322989376613)";
static const char UNLOCK[] = "SELECT pg_advisory_unlock(8388347322989376613)";
static const char TABLE[] =
    "CREATE TABLE IF NOT EXISTS schema_migrations ("
    "version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, "
    "applied_at timestamptz NOT NULL DEFAULT now())";

static void digest_hex(const migration *m, char out[65]) {
    uint8_t digest[32];
    secret_sha256(m->sql, strlen(m->sql), digest);
    id_hex(digest, sizeof digest, out);
}

// 1: applied before, 0: not yet, -1: e.
static int is_applied(pg *db, const migration *m, err *e) {
    char version[16], hex[65];
    snprintf(version, sizeof version, "%d", m->version);
    pg_result *r = NULL;
    if (pg_query(db, "SELECT sha256 FROM schema_migrations WHERE version = $1", 1,
                 (const char *[]){version}, &r, e))
        return -1;
    int rc = pg_rows(r) > 0;
    digest_hex(m, hex);
    if (rc && strcmp(pg_text(r, 0, 0), hex))
        rc = err_set(e, ERR_FORMAT, NULL,
                     "migration %s was changed after it was applied to this database; restore its "
                     "text and add a new one",
                     m->name);
    pg_result_free(r);
    return rc;
}

static int apply(pg *db, const migration *m, err *e) {
    char version[16], hex[65];
    snprintf(version, sizeof version, "%d", m->version);
    digest_hex(m, hex);
    if (pg_exec(db, "BEGIN", e))
        return -1;
    if (pg_exec(db, m->sql, e) ||
        pg_query(db, "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)", 3,
                 (const char *[]){version, m->name, hex}, NULL, e)) {
        err ignored = {0};
        pg_exec(db, "ROLLBACK", &ignored);
        return err_wrap(e, "migration %s", m->name);
    }
    return pg_exec(db, "COMMIT", e);
}

// A database that a newer version migrated is not touched: expand and contract keeps the previous
// version working on it.
static int apply_all(pg *db, int *n_applied, err *e) {
    if (pg_exec(db, TABLE, e))
        return -1;
    for (int i = 0; i < n_migrations; i++) {
        int applied = is_applied(db, &migrations[i], e);
        if (applied < 0 || (!applied && apply(db, &migrations[i], e)))
            return -1;
        *n_applied += !applied;
    }
    return 0;
}

int migrate_run(const char *postgres_url, int *n_applied, err *e) {
    pg *db = NULL;
    *n_applied = 0;
    if (pg_connect(postgres_url, &db, e))
        return -1;
    int rc = pg_exec(db, LOCK, e);
    if (!rc) {
        rc = apply_all(db, n_applied, e);
        err ignored = {0};
        pg_exec(db, UNLOCK, &ignored);
    }
    pg_close(db);
    return rc;
}

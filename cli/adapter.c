// `tiergate adapter import|ls|rm`: a tenant's own low-rank adapters. import checks one as a worker
// would, puts it where workers find it and assigns its name to the tenant, in that order: a name
// never points at a file that is not there, and one that is imported again switches at once.
#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/pg.h"
#include "base/secret.h"
#include "cli/commands.h"
#include "cli/settings.h"
#include "engine/lora.h"
#include "model/adapter.h"

enum { NAME_MOST = 46, DIGITS = 16 };

static const char usage[] =
    "tiergate adapter import DIRECTORY|FILE.gguf --tenant NAME --model NAME --name NAME\n"
    "                                 check it, store it, and let the tenant call it by NAME\n"
    "tiergate adapter ls [--tenant NAME]\n"
    "tiergate adapter rm ID --tenant NAME     forget it and delete its file";

typedef struct adapter_options {
    settings s;
    const char *tenant, *model, *name;
    bool unassign, json;
} adapter_options;

typedef struct imported {
    char tenant_id[40], id[64], digest[65], path[CONFIG_TEXT + 160];
    buf bytes;
} imported;

static int find_tenant(pg *db, const char *name, char out[40], err *e) {
    pg_result *r = NULL;
    if (!name)
        return err_set(e, ERR_INVALID, "tenant", "say whose adapter it is: --tenant NAME");
    if (pg_query(db, "SELECT id FROM tenants WHERE name = $1", 1, &name, &r, e))
        return -1;
    int rc =
        pg_rows(r) == 1 ? 0 : err_set(e, ERR_NOT_FOUND, "tenant", "there is no tenant '%s'", name);
    if (rc == 0)
        snprintf(out, 40, "%s", pg_text(r, 0, 0));
    pg_result_free(r);
    return rc;
}

static int check_name(const char *name, err *e) {
    if (!name || !*name)
        return err_set(e, ERR_INVALID, "name", "say what the tenant will call it by: --name NAME");
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
            return err_set(e, ERR_INVALID, "name",
                           "--name takes letters, digits, '.', '_' and '-', not '%s'", name);
    if (*name == '.' || strlen(name) > NAME_MOST)
        return err_set(e, ERR_INVALID, "name", "--name begins with no '.' and has at most %d bytes",
                       NAME_MOST);
    return 0;
}

// Loads it as a worker would, in the plainest backend.
static int check_fits(const model *m, const buf *bytes, err *e) {
    gguf *file = NULL;
    lora *l = NULL;
    ops *o = NULL;
    int rc = gguf_open_memory(bytes->data, bytes->len, &file, e) || ops_open("ref", 1, &o, e) ||
                     lora_load(file, m, o, &l, e)
                 ? -1
                 : 0;
    lora_free(l);
    if (o)
        o->close(o);
    gguf_close(file);
    return rc;
}

static int read_for(const config *c, const adapter_options *o, const char *path, buf *bytes,
                    err *e) {
    const config_model *conf = o->model ? config_find_model(c, o->model) : NULL;
    model *m = NULL;
    if (!o->model)
        return err_set(e, ERR_INVALID, "model", "say which model it adapts: --model NAME");
    if (!conf)
        return err_set(e, ERR_NOT_FOUND, "model", "no [model %s] is configured", o->model);
    if (model_open(conf->path, conf->template_name, &m, e))
        return -1;
    int rc = adapter_read(path, model_get_shape(m), bytes, e) || check_fits(m, bytes, e) ? -1 : 0;
    model_close(m);
    return rc;
}

static void name_content(const char *name, imported *a) {
    uint8_t digest[32];
    secret_sha256(a->bytes.data, a->bytes.len, digest);
    for (int i = 0; i < 32; i++)
        snprintf(a->digest + 2 * i, 3, "%02x", digest[i]);
    snprintf(a->id, sizeof a->id, "%.*s-%.*s", NAME_MOST, name, DIGITS, a->digest);
}

static int store(const config *c, imported *a, err *e) {
    char dir[CONFIG_TEXT + 64];
    size_t n = config_adapters_dir(c, dir, sizeof dir);
    snprintf(dir + n, sizeof dir - n, "/%s", a->tenant_id);
    snprintf(a->path, sizeof a->path, "%s/%s.gguf", dir, a->id);
    return file_mkdirs(dir, 0700, e) ||
                   file_write_atomic(a->path, 0600, a->bytes.data, a->bytes.len, e)
               ? -1
               : 0;
}

// A name that means a model, or another model's adapter, is not taken over.
static int record(pg *db, const adapter_options *o, const imported *a, err *e) {
    char bytes[24];
    pg_result *r = NULL;
    snprintf(bytes, sizeof bytes, "%zu", a->bytes.len);
    if (pg_query(db,
                 "WITH a AS (INSERT INTO adapters (tenant_id, id, name, model, bytes, sha256) "
                 "VALUES ($1, $2, $3, $4, $5, decode($6, 'hex')) ON CONFLICT DO NOTHING) "
                 "INSERT INTO assignments (tenant_id, name, model, adapter) "
                 "VALUES ($1, $3, $4, $2) ON CONFLICT (tenant_id, name) DO UPDATE SET adapter = $2 "
                 "WHERE assignments.model = $4 AND assignments.adapter <> '' RETURNING name",
                 6, (const char *[]){a->tenant_id, a->id, o->name, o->model, bytes, a->digest}, &r,
                 e))
        return -1;
    int n = pg_rows(r);
    pg_result_free(r);
    return n == 1 ? 0
                  : err_set(e, ERR_INVALID, "name",
                            "the tenant calls something else '%s' already; choose another --name",
                            o->name);
}

static void tell_import(const adapter_options *o, const imported *a) {
    if (!o->json) {
        printf("%s may call %s as model \"%s\" (id %s, %zu bytes)\n", o->tenant, o->model, o->name,
               a->id, a->bytes.len);
        return;
    }
    json_t *out =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:I}", "id", a->id, "name", o->name, "tenant", o->tenant,
                  "model", o->model, "sha256", a->digest, "bytes", (json_int_t)a->bytes.len);
    json_dumpf(out, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(out);
}

static int import(const config *c, pg *db, const adapter_options *o, const char *path, err *e) {
    imported a = {0};
    int rc = check_name(o->name, e) || find_tenant(db, o->tenant, a.tenant_id, e) ||
                     read_for(c, o, path, &a.bytes, e)
                 ? -1
                 : 0;
    if (rc == 0) {
        name_content(o->name, &a);
        rc = store(c, &a, e) || record(db, o, &a, e) ? -1 : 0;
    }
    if (rc == 0)
        tell_import(o, &a);
    buf_release(&a.bytes);
    return rc;
}

static int list(pg *db, const adapter_options *o, err *e) {
    pg_result *r = NULL;
    if (pg_query(db,
                 "SELECT a.id, t.name, a.model, a.bytes, to_char(a.imported_at AT TIME ZONE 'UTC', "
                 "'YYYY-MM-DD HH24:MI'), coalesce(string_agg(s.name, ' '), '') FROM adapters a "
                 "JOIN tenants t ON t.id = a.tenant_id LEFT JOIN assignments s ON s.tenant_id = "
                 "a.tenant_id AND s.adapter = a.id WHERE $1::text IS NULL OR t.name = $1 "
                 "GROUP BY t.name, a.id, a.model, a.bytes, a.imported_at ORDER BY t.name, a.id",
                 1, &o->tenant, &r, e))
        return -1;
    json_t *all = json_array();
    if (!o->json)
        printf("%-40s %-16s %-16s %12s %-16s %s\n", "ID", "TENANT", "MODEL", "BYTES", "IMPORTED",
               "CALLED BY");
    for (int i = 0; i < pg_rows(r); i++) {
        if (o->json)
            json_array_append_new(all,
                                  json_pack("{s:s,s:s,s:s,s:I,s:s,s:s}", "id", pg_text(r, i, 0),
                                            "tenant", pg_text(r, i, 1), "model", pg_text(r, i, 2),
                                            "bytes", (json_int_t)pg_int(r, i, 3), "imported_at",
                                            pg_text(r, i, 4), "called_by", pg_text(r, i, 5)));
        else
            printf("%-40s %-16s %-16s %12lld %-16s %s\n", pg_text(r, i, 0), pg_text(r, i, 1),
                   pg_text(r, i, 2), pg_int(r, i, 3), pg_text(r, i, 4), pg_text(r, i, 5));
    }
    if (o->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(all);
    pg_result_free(r);
    return 0;
}

// The row and its assignments first: a worker that has it loaded may finish what runs.
static int forget(const config *c, pg *db, const adapter_options *o, const char *id, err *e) {
    char tenant_id[40], path[CONFIG_TEXT + 160];
    pg_result *r = NULL;
    if (find_tenant(db, o->tenant, tenant_id, e))
        return -1;
    if (pg_query(
            db,
            "WITH used AS (SELECT name FROM assignments WHERE tenant_id = $1 AND adapter = $2), "
            "gone AS (DELETE FROM assignments WHERE tenant_id = $1 AND adapter = $2 AND "
            "$3::boolean), d AS (DELETE FROM adapters WHERE tenant_id = $1 AND id = $2 AND "
            "($3::boolean OR NOT EXISTS (SELECT FROM used)) RETURNING id) "
            "SELECT (SELECT count(*) FROM d), coalesce((SELECT string_agg(name, ', ') FROM "
            "used), '')",
            3, (const char *[]){tenant_id, id, o->unassign ? "true" : "false"}, &r, e))
        return -1;
    bool gone = pg_int(r, 0, 0) == 1;
    int rc =
        gone ? 0
        : *pg_text(r, 0, 1)
            ? err_set(e, ERR_INVALID, "id", "%s calls it %s; say --unassign to take that away too",
                      o->tenant, pg_text(r, 0, 1))
            : err_set(e, ERR_NOT_FOUND, "id", "%s has no adapter '%s'", o->tenant, id);
    pg_result_free(r);
    if (rc)
        return -1;
    size_t n = config_adapters_dir(c, path, sizeof path);
    snprintf(path + n, sizeof path - n, "/%s/%s.gguf", tenant_id, id);
    unlink(path);
    printf("removed %s\n", id);
    return 0;
}

static int check_words(const char *const *words, int n, err *e) {
    if (n == 2 && (!strcmp(words[0], "import") || !strcmp(words[0], "rm")))
        return 0;
    if (n == 1 && !strcmp(words[0], "ls"))
        return 0;
    return err_set(e, ERR_INVALID, "action", "say adapter import DIRECTORY|FILE, ls, or rm ID");
}

int command_adapter(int argc, char **argv, err *e) {
    adapter_options o = {0};
    const option_row rows[] = {
        SETTINGS_ROWS(&o.s),
        {"tenant", OPTION_TEXT, &o.tenant, "NAME", "whose it is"},
        {"model", OPTION_TEXT, &o.model, "NAME", "import: the configured model that it adapts"},
        {"name", OPTION_TEXT, &o.name, "NAME", "import: what the tenant calls it by"},
        {"unassign", OPTION_FLAG, &o.unassign, NULL, "rm: take its names away too"},
        {"json", OPTION_FLAG, &o.json, NULL, "print JSON (import, ls)"},
    };
    enum { N = sizeof rows / sizeof *rows };
    const char *words[2];
    int n_words;
    config c;
    pg *db = NULL;
    int rc = settings_parse_words(rows, N, argc, argv, usage, words, 2, &n_words, e);
    if (rc)
        return rc > 0 ? 0 : -1;
    if (check_words(words, n_words, e) || settings_connect(&o.s, &c, &db, e))
        return -1;
    rc = !strcmp(words[0], "import") ? import(&c, db, &o, words[1], e)
         : !strcmp(words[0], "rm")   ? forget(&c, db, &o, words[1], e)
                                     : list(db, &o, e);
    pg_close(db);
    settings_release(&o.s);
    return rc;
}

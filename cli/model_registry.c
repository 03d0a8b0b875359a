// `tiergate model add|ls|verify|rm`. A record says what was looked at: path, format, shape,
// revision and the SHA-256 of every file that opening reads. Owns nothing between calls.
#include "cli/model_registry.h"
#include <ctype.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/secret.h"
#include "model/hf.h"
#include "model/model.h"

#define MAX_FILES 1024
#define TERMINAL_MS 500 // between two lines of progress
#define LOG_MS 10000

typedef struct model_file {
    char *name; // within the directory, or of the single file
    uint64_t bytes;
    char sha256[65];
} model_file;

typedef struct file_list {
    const char *path; // of the model
    bool directory;
    model_file files[MAX_FILES];
    int n;
    uint64_t bytes, hashed;
    int64_t told_ms;
    bool told;
} file_list;

// ---- files

static void path_of(const file_list *l, const char *name, char *out, size_t n) {
    snprintf(out, n, l->directory ? "%s/%s" : "%s", l->path, name);
}

static int add_file(void *ctx, const char *name) {
    file_list *l = ctx;
    char path[PATH_MAX];
    struct stat s;
    if (l->n == MAX_FILES)
        return -1;
    path_of(l, name, path, sizeof path);
    if (stat(path, &s)) // verify says that it is gone
        return 0;
    model_file *f = &l->files[l->n++];
    *f = (model_file){.name = strdup(name), .bytes = (uint64_t)s.st_size};
    if (!f->name)
        fatal("out of memory");
    l->bytes += f->bytes;
    return 0;
}

static int list_files(const char *path, file_list *l, err *e) {
    *l = (file_list){.path = path, .directory = hf_is_directory(path), .told_ms = clock_mono_ms()};
    const char *slash = strrchr(path, '/');
    if (!l->directory)
        return add_file(l, slash ? slash + 1 : path);
    err_set(e, ERR_FORMAT, NULL, "the directory has more than %d files", MAX_FILES);
    return hf_each_file(path, add_file, l, e);
}

static void release_files(file_list *l) {
    for (int i = 0; i < l->n; i++)
        free(l->files[i].name);
}

static void tell_progress(void *ctx, size_t n) {
    file_list *l = ctx;
    int64_t now = clock_mono_ms();
    bool terminal = isatty(STDERR_FILENO);
    l->hashed += n;
    if (now - l->told_ms < (terminal ? TERMINAL_MS : LOG_MS))
        return;
    l->told_ms = now;
    l->told = terminal;
    fprintf(stderr, "%shashing %s: %llu of %llu MiB%s", terminal ? "\r" : "", l->path,
            (unsigned long long)(l->hashed >> 20), (unsigned long long)(l->bytes >> 20),
            terminal ? "" : "\n");
}

static int hash_files(file_list *l, err *e) {
    static const char digits[] = "0123456789abcdef";
    int rc = 0;
    for (int i = 0; i < l->n && !rc; i++) {
        char path[PATH_MAX];
        uint8_t sum[32];
        path_of(l, l->files[i].name, path, sizeof path);
        rc = secret_sha256_file(path, tell_progress, l, sum, &l->files[i].bytes, e);
        for (int k = 0; k < 32; k++) {
            l->files[i].sha256[2 * k] = digits[sum[k] >> 4];
            l->files[i].sha256[2 * k + 1] = digits[sum[k] & 15];
        }
    }
    if (l->told)
        fputc('\n', stderr);
    return rc;
}

// Opened, hashed and, when all was read, still the same: what is recorded is what was opened.
static int examine(const char *path, const char *template, file_list *l, model **out, err *e) {
    model *m = NULL;
    if (model_open(path, template, &m, e))
        return -1;
    if (list_files(path, l, e) || hash_files(l, e) || gguf_unchanged(model_gguf(m), e)) {
        model_close(m);
        return -1;
    }
    *out = m;
    return 0;
}

// ---- add

static bool is_name(const char *s) {
    size_t n = strlen(s);
    for (const char *p = s; *p; p++)
        if (!islower((unsigned char)*p) && !isdigit((unsigned char)*p) &&
            (p == s || !strchr("._-", *p)))
            return false;
    return n >= 1 && n <= 63;
}

// The path's last part in small letters, without ".gguf".
static void name_from_path(const char *path, char *out, size_t n) {
    const char *slash = strrchr(path, '/');
    snprintf(out, n, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(out, '.');
    if (dot && !strcmp(dot, ".gguf"))
        *dot = '\0';
    for (char *p = out; *p; p++)
        *p = (char)tolower((unsigned char)*p);
}

static int check_words(const registry_options *o, const char *name, err *e) {
    if (!is_name(name))
        return err_set(e, ERR_INVALID, "name",
                       "--name is 1 to 63 small letters, digits, '.', '_' and '-', not '%.80s'",
                       name);
    if (*o->tier && (!is_name(o->tier) || strlen(o->tier) > 15))
        return err_set(e, ERR_INVALID, "tier",
                       "--tier is 1 to 15 small letters, digits, '.', '_' and '-', not '%.40s'",
                       o->tier);
    return 0;
}

static char *shape_json(const model *m) {
    const model_shape *s = model_get_shape(m);
    json_t *o =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "architecture",
                  model_arch_name(s->arch), "layers", s->n_layers, "width", s->dim, "heads",
                  s->n_heads, "kv_heads", s->n_kv_heads, "head_dim", s->head_dim, "intermediate",
                  s->intermediate, "vocabulary", s->n_vocab, "tied_head", (int)s->tied_head);
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

static int insert(pg *db, const char *name, const registry_options *o, const model *m,
                  const file_list *l, err *e) {
    char context[16];
    char *shape = shape_json(m);
    snprintf(context, sizeof context, "%d", model_get_shape(m)->context);
    const char *row[] = {name,    l->path,     l->directory ? "safetensors" : "gguf",
                         o->tier, o->template, model_revision(m),
                         shape,   context};
    int rc = pg_exec(db, "BEGIN", e) ||
             pg_query(db,
                      "INSERT INTO models (name, path, format, tier, template, revision, shape, "
                      "context) VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::integer)",
                      8, row, NULL, e);
    if (rc && !strcmp(pg_sqlstate(db), "23505"))
        err_set(
            e, ERR_INVALID, "name",
            "there is a model '%s' already: give another --name, or `tiergate model rm %s` first",
            name, name);
    for (int i = 0; i < l->n && !rc; i++) {
        char bytes[24];
        snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)l->files[i].bytes);
        rc = pg_query(db,
                      "INSERT INTO model_files (model, file, bytes, sha256) VALUES ($1, $2, "
                      "$3::bigint, decode($4, 'hex'))",
                      4, (const char *[]){name, l->files[i].name, bytes, l->files[i].sha256}, NULL,
                      e);
    }
    free(shape);
    err ignored;
    if (rc)
        pg_exec(db, "ROLLBACK", &ignored);
    return rc || pg_exec(db, "COMMIT", e) ? -1 : 0;
}

static json_t *files_json(const file_list *l) {
    json_t *files = json_array();
    for (int i = 0; i < l->n; i++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "file", l->files[i].name, "bytes",
                                               (json_int_t)l->files[i].bytes, "sha256",
                                               l->files[i].sha256));
    return files;
}

static void print_json(json_t *value) {
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(value);
}

static void print_added(const char *name, const registry_options *o, const model *m,
                        const file_list *l) {
    if (o->json) {
        print_json(json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:o}", "name", name, "path", l->path,
                             "format", l->directory ? "safetensors" : "gguf", "tier", o->tier,
                             "revision", model_revision(m), "context", model_get_shape(m)->context,
                             "files", files_json(l)));
        return;
    }
    printf("added %s: %s, %d file%s, %llu bytes, revision %s\n", name,
           l->directory ? "safetensors" : "GGUF", l->n, l->n == 1 ? "" : "s",
           (unsigned long long)l->bytes, model_revision(m));
    printf(
        "To serve it, add this to the configuration of gateways and workers and restart them:\n\n"
        "[model %s]\npath = %s\ntier = %s\n",
        name, l->path, *o->tier ? o->tier : "7b");
    if (*o->template)
        printf("template = %s\n", o->template);
}

int registry_add(pg *db, const char *path, const registry_options *o, err *e) {
    char absolute[PATH_MAX], own[PATH_MAX];
    file_list *l = calloc(1, sizeof *l);
    model *m = NULL;
    if (!l)
        fatal("out of memory");
    int rc = -1;
    if (!realpath(path, absolute)) {
        err_set(e, ERR_INVALID, "path", "no such file or directory: %.200s", path);
        goto done;
    }
    name_from_path(absolute, own, sizeof own);
    const char *name = o->name ? o->name : own;
    if (check_words(o, name, e) || examine(absolute, o->template, l, &m, e) ||
        insert(db, name, o, m, l, e))
        goto done;
    print_added(name, o, m, l);
    rc = 0;
done:
    model_close(m);
    release_files(l);
    free(l);
    return rc;
}

// ---- ls

static int select_models(pg *db, const char *name, pg_result **out, err *e) {
    static const char sql[] =
        "SELECT name, path, format, tier, template, revision, shape, context, "
        "to_char(added_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
        "to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
        "(SELECT sum(bytes) FROM model_files WHERE model = name), "
        "(SELECT count(*) FROM model_files WHERE model = name), "
        "(SELECT count(DISTINCT tenant_id) FROM assignments a WHERE a.model = models.name) "
        "FROM models WHERE $1::text IS NULL OR name = $1 ORDER BY name";
    if (pg_query(db, sql, 1, (const char *[]){name}, out, e))
        return -1;
    if (!name || pg_rows(*out) == 1)
        return 0;
    pg_result_free(*out);
    *out = NULL;
    return err_set(e, ERR_NOT_FOUND, "name", "there is no model '%s' (see `tiergate model ls`)",
                   name);
}
enum {
    NAME,
    PATH,
    FORMAT,
    TIER,
    TEMPLATE,
    REVISION,
    SHAPE,
    CONTEXT,
    ADDED,
    VERIFIED,
    BYTES,
    FILES,
    TENANTS
};

static json_t *model_json(const pg_result *r, int i) {
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:s, s:s}", "name",
        pg_text(r, i, NAME), "path", pg_text(r, i, PATH), "format", pg_text(r, i, FORMAT), "tier",
        pg_text(r, i, TIER), "template", pg_text(r, i, TEMPLATE), "revision",
        pg_text(r, i, REVISION), "shape", json_loads(pg_text(r, i, SHAPE), 0, NULL), "context",
        (json_int_t)pg_int(r, i, CONTEXT), "bytes", (json_int_t)pg_int(r, i, BYTES), "files",
        (json_int_t)pg_int(r, i, FILES), "tenants", (json_int_t)pg_int(r, i, TENANTS), "added_at",
        pg_text(r, i, ADDED), "verified_at", pg_text(r, i, VERIFIED));
}

int registry_list(pg *db, const registry_options *o, err *e) {
    pg_result *r = NULL;
    if (select_models(db, o->name, &r, e))
        return -1;
    json_t *all = json_array();
    if (!o->json)
        printf("%-24s %-11s %-6s %8s %12s %7s %-20s %s\n", "NAME", "FORMAT", "TIER", "CONTEXT",
               "BYTES", "TENANTS", "VERIFIED", "PATH");
    for (int i = 0; i < pg_rows(r); i++)
        if (o->json)
            json_array_append_new(all, model_json(r, i));
        else
            printf("%-24s %-11s %-6s %8lld %12lld %7lld %-20s %s\n", pg_text(r, i, NAME),
                   pg_text(r, i, FORMAT), pg_text(r, i, TIER), pg_int(r, i, CONTEXT),
                   pg_int(r, i, BYTES), pg_int(r, i, TENANTS), pg_text(r, i, VERIFIED),
                   pg_text(r, i, PATH));
    if (o->json)
        print_json(all);
    else
        json_decref(all);
    pg_result_free(r);
    return 0;
}

// ---- verify

static void differ(json_t *found, const char *what, const char *why) {
    json_array_append_new(found, json_pack("{s:s, s:s}", "what", what, "why", why));
}

static const model_file *find_file(const file_list *l, const char *name) {
    for (int i = 0; i < l->n; i++)
        if (!strcmp(l->files[i].name, name))
            return &l->files[i];
    return NULL;
}

static void compare_files(const pg_result *r, const file_list *l, json_t *found) {
    int known = 0;
    for (int i = 0; i < pg_rows(r); i++) {
        const model_file *f = find_file(l, pg_text(r, i, 0));
        known += f != NULL;
        if (!f)
            differ(found, pg_text(r, i, 0), "is gone");
        else if ((long long)f->bytes != pg_int(r, i, 1))
            differ(found, f->name, "has another size");
        else if (strcmp(f->sha256, pg_text(r, i, 2)))
            differ(found, f->name, "has another SHA-256");
    }
    for (int k = 0; k < l->n && known < l->n; k++) {
        bool recorded = false;
        for (int i = 0; i < pg_rows(r); i++)
            recorded |= !strcmp(l->files[k].name, pg_text(r, i, 0));
        if (!recorded)
            differ(found, l->files[k].name, "is new");
    }
}

// What differs of one model is appended to found; -1 only when the database does not answer.
static int verify_one(pg *db, const pg_result *models, int i, json_t *found, err *e) {
    const char *path = pg_text(models, i, PATH);
    pg_result *r = NULL;
    model *m = NULL;
    err why = {0};
    if (pg_query(db,
                 "SELECT file, bytes, encode(sha256, 'hex') FROM model_files WHERE model = $1 "
                 "ORDER BY file",
                 1, (const char *[]){pg_text(models, i, NAME)}, &r, e))
        return -1;
    file_list *l = calloc(1, sizeof *l);
    if (!l)
        fatal("out of memory");
    if (list_files(path, l, &why) || hash_files(l, &why))
        differ(found, path, why.message);
    else
        compare_files(r, l, found);
    if (model_open(path, pg_text(models, i, TEMPLATE), &m, &why))
        differ(found, path, why.message);
    else if (strcmp(model_revision(m), pg_text(models, i, REVISION)))
        differ(found, path, "has another revision");
    model_close(m);
    release_files(l);
    free(l);
    pg_result_free(r);
    if (json_array_size(found) > 0)
        return 0;
    return pg_query(db, "UPDATE models SET verified_at = now() WHERE name = $1", 1,
                    (const char *[]){pg_text(models, i, NAME)}, NULL, e);
}

static void print_verified(const char *name, const json_t *found) {
    size_t k;
    json_t *d;
    printf("%s: %s\n", name, json_array_size(found) ? "differs" : "as it was added");
    json_array_foreach(found, k, d)
        printf("  %s %s\n", json_string_value(json_object_get(d, "what")),
               json_string_value(json_object_get(d, "why")));
}

int registry_verify(pg *db, const registry_options *o, err *e) {
    pg_result *r = NULL;
    int rc = 0, n_wrong = 0;
    if (select_models(db, o->name, &r, e))
        return -1;
    json_t *all = json_array();
    for (int i = 0; i < pg_rows(r) && !rc; i++) {
        json_t *found = json_array();
        rc = verify_one(db, r, i, found, e);
        n_wrong += json_array_size(found) > 0;
        if (!rc && !o->json)
            print_verified(pg_text(r, i, NAME), found);
        json_array_append_new(all, json_pack("{s:s, s:b, s:o}", "name", pg_text(r, i, NAME), "same",
                                             json_array_size(found) == 0, "differences", found));
    }
    if (!rc && o->json)
        json_dumpf(all, stdout, JSON_INDENT(2)), putchar('\n');
    if (!rc && n_wrong)
        rc = err_set(e, ERR_FORMAT, NULL, "%d of %d model%s differ%s from what was added", n_wrong,
                     pg_rows(r), pg_rows(r) == 1 ? "" : "s", n_wrong == 1 ? "s" : "");
    json_decref(all);
    pg_result_free(r);
    return rc;
}

// ---- rm

static int still_assigned(pg *db, const char *name, err *e) {
    pg_result *r = NULL;
    if (pg_query(
            db,
            "SELECT t.name, a.name, count(*) OVER () FROM assignments a JOIN tenants t ON t.id "
            "= a.tenant_id WHERE a.model = $1 ORDER BY 1, 2 LIMIT 1",
            1, (const char *[]){name}, &r, e))
        return -1;
    int rc = pg_rows(r) == 0
                 ? err_set(e, ERR_NOT_FOUND, "name",
                           "there is no model '%s' (see `tiergate model ls`)", name)
                 : err_set(e, ERR_INVALID, "name",
                           "%s is assigned to tenant '%s' as '%s'%s: give --unassign to take its "
                           "assignments away too",
                           name, pg_text(r, 0, 0), pg_text(r, 0, 1),
                           pg_int(r, 0, 2) > 1 ? " and to others" : "");
    pg_result_free(r);
    return rc;
}

int registry_remove(pg *db, const registry_options *o, err *e) {
    static const char plain[] = "DELETE FROM models WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM "
                                "assignments WHERE model = $1)";
    static const char with_assignments[] =
        "WITH gone AS (DELETE FROM models WHERE name = $1 RETURNING name) DELETE FROM assignments "
        "USING gone WHERE model = gone.name";
    pg_result *r = NULL, *known = NULL;
    if (select_models(db, o->name, &known, e))
        return -1;
    pg_result_free(known);
    if (pg_query(db, o->unassign ? with_assignments : plain, 1, (const char *[]){o->name}, &r, e))
        return -1;
    int n = pg_affected(r);
    pg_result_free(r);
    if (!o->unassign && n == 0)
        return still_assigned(db, o->name, e);
    if (o->json)
        print_json(json_pack("{s:s, s:b, s:i}", "name", o->name, "removed", 1, "unassigned",
                             o->unassign ? n : 0));
    else if (o->unassign)
        printf("removed %s and %d assignment%s; its files stay\n", o->name, n, n == 1 ? "" : "s");
    else
        printf("removed %s; its files stay\n", o->name);
    return 0;
}

// The first keys of an installation, the ready file for scripts, and what a person sees when
// everything is up.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/pg.h"
#include "cli/up.h"

static const char TENANT[] = "local", USER[] = "developer";

// Is the key of this file in force? Its text is left in key.
static bool key_holds(pg *db, const secret_ring *pepper, const char *key) {
    char public_id[9];
    if (!apikey_well_formed(key, strlen(key), public_id))
        return false;
    err e = {0};
    pg_result *r = NULL;
    bool holds = false;
    if (!pg_query(db,
                  "SELECT encode(hash, 'hex'), pepper_id FROM api_keys WHERE public_id = $1 AND "
                  "revoked_at IS NULL "
                  "AND (expires_at IS NULL OR expires_at > now())",
                  1, (const char *[]){public_id}, &r, &e) &&
        pg_rows(r) == 1)
        for (int i = 0; i < pepper->n; i++) {
            uint8_t digest[32];
            char hex[65];
            apikey_hash(&pepper->keys[i], key, digest);
            id_hex(digest, sizeof digest, hex);
            holds |= pg_int(r, 0, 1) == pepper->keys[i].id && !strcmp(hex, pg_text(r, 0, 0));
        }
    pg_result_free(r);
    return holds;
}

// The key that an earlier start made, or a new one: kept in DATA/secrets so that every start prints
// the same.
static int key_prepare(up *u, pg *db, const secret_ring *pepper, const char *file, unsigned roles,
                       char key[APIKEY_TEXT], err *e) {
    char path[CONFIG_TEXT + 64];
    buf text = {0};
    err missing = {0};
    snprintf(path, sizeof path, "%s/secrets/%s", u->c.data_dir, file);
    if (!file_read(path, 256, &text, &missing) && text.len >= APIKEY_TEXT - 1) {
        memcpy(key, text.data, APIKEY_TEXT - 1);
        key[APIKEY_TEXT - 1] = 0;
    }
    secret_wipe(text.data, text.len);
    buf_release(&text);
    if (key_holds(db, pepper, key))
        return 0;
    apikey_row row;
    if (apikey_create(db, pepper, TENANT, USER, file, roles, 0, true, key, &row, e))
        return -1;
    return file_write_atomic(path, 0600, key, APIKEY_TEXT - 1, e);
}

// The local tenant may use every model of the configuration by its id.
static int assign_models(up *u, pg *db, err *e) {
    for (int i = 0; i < u->c.n_models; i++)
        if (pg_query(db,
                     "INSERT INTO assignments (tenant_id, name, model) SELECT id, $2, $2 FROM "
                     "tenants WHERE name = $1 "
                     "ON CONFLICT DO NOTHING",
                     2, (const char *[]){TENANT, u->c.models[i].name}, NULL, e))
            return -1;
    return 0;
}

int keys_prepare(up *u, err *e) {
    char dir[CONFIG_TEXT + 16];
    secret_ring pepper = {0}, cluster = {0};
    pg *db = NULL;
    snprintf(dir, sizeof dir, "%s/secrets", u->c.data_dir);
    int rc = secret_ring_load(dir, "pepper", true, &pepper, e) ||
             secret_ring_load(dir, "cluster", true, &cluster, e) ||
             pg_connect(u->c.postgres_url, &db, e) ||
             key_prepare(u, db, &pepper, "local-api-key", 1, u->api_key, e) ||
             key_prepare(u, db, &pepper, "local-admin-key", 3, u->admin_key, e) ||
             assign_models(u, db, e);
    pg_close(db);
    secret_wipe(&pepper, sizeof pepper);
    secret_wipe(&cluster, sizeof cluster);
    return rc ? -1 : 0;
}

static const json_t *gateway_info(const up *u) {
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == CHILD_GATEWAY)
            return u->children[i].info;
    return NULL;
}

static json_t *pids(const up *u, child_kind kind, bool many) {
    json_t *list = json_array(), *one = json_null();
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == kind) {
            one = json_integer(u->children[i].pid);
            json_array_append(list, one);
        }
    if (many) {
        json_decref(one);
        return list;
    }
    json_decref(list);
    return one;
}

// What each worker said: its model, its backend and where its metrics are.
static json_t *worker_infos(const up *u) {
    json_t *list = json_array();
    for (int i = 0; i < u->n_children; i++)
        if (u->children[i].kind == CHILD_WORKER)
            json_array_append(list, u->children[i].info);
    return list;
}

int ready_write(up *u, err *e) {
    if (!u->ready_file)
        return 0;
    json_t *ready = json_deep_copy(gateway_info(u));
    json_object_set_new(ready, "api_key", json_string(u->api_key));
    json_object_set_new(ready, "admin_key", json_string(u->admin_key));
    json_object_set_new(ready, "data_dir", json_string(u->c.data_dir));
    json_object_set_new(ready, "workers", worker_infos(u));
    json_object_set_new(ready, "pids",
                        json_pack("{s:o,s:o,s:o,s:o}", "gateway", pids(u, CHILD_GATEWAY, true),
                                  "worker", pids(u, CHILD_WORKER, true), "redis",
                                  pids(u, CHILD_REDIS, false), "postgres",
                                  pids(u, CHILD_POSTGRES, false)));
    char *text = json_dumps(ready, JSON_INDENT(2));
    json_decref(ready);
    if (!text)
        return err_set(e, ERR_INTERNAL, NULL, "the ready file cannot be written as JSON");
    int rc = file_write_atomic(u->ready_file, 0600, text, strlen(text), e);
    secret_wipe(text, strlen(text));
    free(text);
    return rc;
}

void ready_print(up *u) {
    const json_t *info = gateway_info(u);
    const char *url = json_string_value(json_object_get(info, "base_url"));
    const char *ca = json_string_value(json_object_get(info, "ca_file"));
    up_say(u, "ready");
    printf("\n  URL          %s\n  API key      %s\n  admin key    %s/secrets/local-admin-key\n  "
           "certificate  %s\n"
           "  models       ",
           url, u->api_key, u->c.data_dir, ca ? ca : "(none: plain HTTP)");
    for (int i = 0; i < u->c.n_models; i++)
        printf("%s%s", i ? ", " : "", u->c.models[i].name);
    printf("\n\nTry it (in another terminal):\n\n"
           "  curl %s%s %s/chat/completions \\\n"
           "    -H 'Authorization: Bearer %s' \\\n    -H 'Content-Type: application/json' \\\n"
           "    -d "
           "'{\"model\":\"%s\",\"max_tokens\":200,\"messages\":[{\"role\":\"user\",\"content\":"
           "\"Write a C "
           "function that adds two "
           "integers.\"}]}'\n\nCtrl-C stops everything; data and keys stay in %s.\n",
           ca ? "--cacert " : "", ca ? ca : "", url, u->api_key, u->c.models[0].name,
           u->c.data_dir);
    fflush(stdout);
}

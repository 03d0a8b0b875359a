// `tiergate key create|list|revoke`: API keys, straight in the database (on the machine, with its
// secrets).
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "auth/apikey.h"
#include "base/pg.h"
#include "cli/commands.h"
#include "cli/settings.h"

typedef struct key_options {
    settings s;
    const char *tenant, *user, *name, *roles;
    int64_t expires_days;
    bool json, create_missing;
    const char *words[2]; // the action and what it is about
    int n_words;
} key_options;

static json_t *row_json(const apikey_row *r) {
    static const char format[] = "{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s*,s:s*,s:s*}";
    return json_pack(format, "id", r->id, "public_id", r->public_id, "name", r->name, "tenant",
                     r->tenant, "user", r->user, "roles", r->roles, "created_at", r->created,
                     "expires_at", *r->expires ? r->expires : NULL, "revoked_at",
                     *r->revoked ? r->revoked : NULL, "last_used_at",
                     *r->last_used ? r->last_used : NULL);
}

static void print_json(json_t *value) {
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(value);
}

static int roles_parse(const char *text, unsigned *out, err *e) {
    if (!strcmp(text, "inference"))
        *out = 1;
    else if (!strcmp(text, "admin"))
        *out = 2;
    else if (!strcmp(text, "inference,admin"))
        *out = 3;
    else
        return err_set(e, ERR_INVALID, "roles",
                       "--roles is inference, admin or inference,admin, not '%s'", text);
    return 0;
}

static int create(const key_options *o, const config *c, pg *db, err *e) {
    unsigned roles = 0;
    char dir[CONFIG_TEXT + 16], key[APIKEY_TEXT];
    secret_ring pepper;
    apikey_row row;
    if (!o->tenant || !o->user)
        return err_set(e, ERR_INVALID, "tenant", "key create needs --tenant NAME and --user NAME");
    if (o->expires_days < 0 || o->expires_days > 36500)
        return err_set(e, ERR_INVALID, "expires-days", "--expires-days is 0 (never) to 36500");
    snprintf(dir, sizeof dir, "%s/secrets", c->data_dir);
    if (roles_parse(o->roles, &roles, e) || secret_ring_load(dir, "pepper", false, &pepper, e) ||
        apikey_create(db, &pepper, o->tenant, o->user, o->name, roles, o->expires_days * 86400,
                      o->create_missing, key, &row, e))
        return -1;
    if (o->json) {
        json_t *out = row_json(&row);
        json_object_set_new(out, "key", json_string(key));
        print_json(out);
    } else {
        printf("%s\n", key);
        fprintf(stderr, "key %s of %s/%s; it is shown only now\n", row.public_id, row.tenant,
                row.user);
    }
    secret_wipe(key, sizeof key);
    secret_wipe(&pepper, sizeof pepper);
    return 0;
}

static int list(const key_options *o, pg *db, err *e) {
    apikey_row *rows;
    int n;
    if (apikey_list(db, o->tenant, &rows, &n, e))
        return -1;
    if (o->json) {
        json_t *all = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(all, row_json(&rows[i]));
        print_json(all);
    } else {
        printf("%-9s %-16s %-16s %-20s %-16s %-21s %s\n", "ID", "TENANT", "USER", "NAME", "ROLES",
               "CREATED", "STATE");
        for (int i = 0; i < n; i++)
            printf("%-9s %-16s %-16s %-20s %-16s %-21s %s%s\n", rows[i].public_id, rows[i].tenant,
                   rows[i].user, rows[i].name, rows[i].roles, rows[i].created,
                   *rows[i].revoked ? "revoked " : "", rows[i].revoked);
    }
    free(rows);
    return 0;
}

static int revoke(const key_options *o, pg *db, err *e) {
    if (o->n_words < 2)
        return err_set(e, ERR_INVALID, "key",
                       "key revoke needs the key's id (see `tiergate key list`)");
    if (apikey_revoke(db, o->words[1], e))
        return -1;
    if (o->json)
        print_json(json_pack("{s:s,s:b}", "key", o->words[1], "revoked", 1));
    else
        printf("revoked %s; gateways refuse it within 2 s\n", o->words[1]);
    return 0;
}

static int run(const key_options *o, const config *c, pg *db, err *e) {
    if (!strcmp(o->words[0], "create"))
        return create(o, c, db, e);
    if (!strcmp(o->words[0], "list"))
        return list(o, db, e);
    if (!strcmp(o->words[0], "revoke"))
        return revoke(o, db, e);
    return err_set(e, ERR_INVALID, "action", "there is no `key %s`: create, list or revoke",
                   o->words[0]);
}

int command_key(int argc, char **argv, err *e) {
    key_options o = {.name = "", .roles = "inference"};
    const option_row rows[] = {
        SETTINGS_ROWS(&o.s),
        {"tenant", OPTION_TEXT, &o.tenant, "NAME", "create: whose; list: only this one's"},
        {"user", OPTION_TEXT, &o.user, "NAME", "create: the user of that tenant"},
        {"name", OPTION_TEXT, &o.name, "TEXT", "create: a name to recognise it by"},
        {"roles", OPTION_TEXT, &o.roles, "LIST",
         "create: inference (default), admin, or inference,admin"},
        {"expires-days", OPTION_INT, &o.expires_days, "N",
         "create: days it is valid (default: no end)"},
        {"create-missing", OPTION_FLAG, &o.create_missing, NULL,
         "create: make tenant and user when they do not exist"},
        {"json", OPTION_FLAG, &o.json, NULL, "print JSON"},
    };
    enum { N = sizeof rows / sizeof *rows };
    config c;
    pg *db = NULL;
    int rc =
        settings_parse_words(rows, N, argc, argv, "tiergate key create|list|revoke [ID] [options]",
                             o.words, 2, &o.n_words, e);
    if (rc)
        return rc > 0 ? 0 : -1;
    if (o.n_words == 0)
        return err_set(e, ERR_INVALID, "action", "say create, list or revoke");
    if (settings_connect(&o.s, &c, &db, e))
        return -1;
    rc = run(&o, &c, db, e);
    pg_close(db);
    return rc;
}

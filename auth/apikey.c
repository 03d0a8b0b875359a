// API keys: text form, checksum, hash and rows. Owns nothing; the caller's connection and thread.
// Does not check keys of requests: auth.c does, with a cache.
#include "auth/apikey.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <zlib.h>

static const char BASE62[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
static const char PREFIX[] = "tg_live_";
enum { PREFIX_N = 8, ID_N = 8, SECRET_N = 32, CHECK_N = 6, SECRET_AT = PREFIX_N + ID_N + 1 };
_Static_assert(SECRET_AT + SECRET_N + CHECK_N + 1 == APIKEY_TEXT,
               "the parts of a key fill its text");

// Uniform characters: bytes past the largest multiple of 62 are drawn again.
static void base62_random(char *out, int n) {
    for (int i = 0; i < n;) {
        uint8_t byte;
        id_random(&byte, 1);
        if (byte < 62 * 4)
            out[i++] = BASE62[byte % 62];
    }
}

static void checksum(const char *key, char out[CHECK_N]) {
    uint64_t crc = crc32(0, (const unsigned char *)key, SECRET_AT + SECRET_N);
    for (int i = CHECK_N - 1; i >= 0; i--, crc /= 62)
        out[i] = BASE62[crc % 62];
}

void apikey_make(char out[APIKEY_TEXT]) {
    memcpy(out, PREFIX, PREFIX_N);
    base62_random(out + PREFIX_N, ID_N);
    out[PREFIX_N + ID_N] = '_';
    base62_random(out + SECRET_AT, SECRET_N);
    checksum(out, out + SECRET_AT + SECRET_N);
    out[APIKEY_TEXT - 1] = 0;
}

static bool is_base62(const char *p, int n) {
    for (int i = 0; i < n; i++)
        if (!p[i] || !strchr(BASE62, p[i]))
            return false;
    return true;
}

bool apikey_well_formed(const char *key, size_t n, char public_id[9]) {
    if (n != APIKEY_TEXT - 1 || memcmp(key, PREFIX, PREFIX_N) || key[PREFIX_N + ID_N] != '_')
        return false;
    if (!is_base62(key + PREFIX_N, ID_N) || !is_base62(key + SECRET_AT, SECRET_N + CHECK_N))
        return false;
    char expected[CHECK_N];
    checksum(key, expected);
    if (memcmp(expected, key + SECRET_AT + SECRET_N, CHECK_N))
        return false;
    memcpy(public_id, key + PREFIX_N, ID_N);
    public_id[ID_N] = 0;
    return true;
}

void apikey_hash(const secret *pepper, const char *key, uint8_t out[32]) {
    secret_hmac(pepper, key, APIKEY_TEXT - 1, out);
}

// ---- rows

static const char ROW_SQL[] =
    "SELECT k.id, k.public_id, k.name, t.name, u.name, "
    "  concat_ws(',', CASE WHEN k.roles & 1 > 0 THEN 'inference' END, "
    "                 CASE WHEN k.roles & 2 > 0 THEN 'admin' END), "
    "  to_char(k.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
    "  to_char(k.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
    "  to_char(k.revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
    "  to_char(k.last_used_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') "
    "FROM api_keys k JOIN users u ON u.id = k.user_id JOIN tenants t ON t.id = u.tenant_id ";

static void column(const pg_result *r, int row, int c, char *out, size_t n) {
    const char *text = pg_text(r, row, c);
    snprintf(out, n, "%s", text ? text : "");
}

static void row_read(const pg_result *r, int i, apikey_row *row) {
    column(r, i, 0, row->id, sizeof row->id);
    column(r, i, 1, row->public_id, sizeof row->public_id);
    column(r, i, 2, row->name, sizeof row->name);
    column(r, i, 3, row->tenant, sizeof row->tenant);
    column(r, i, 4, row->user, sizeof row->user);
    column(r, i, 5, row->roles, sizeof row->roles);
    column(r, i, 6, row->created, sizeof row->created);
    column(r, i, 7, row->expires, sizeof row->expires);
    column(r, i, 8, row->revoked, sizeof row->revoked);
    column(r, i, 9, row->last_used, sizeof row->last_used);
}

// The id of one row, or ERR_NOT_FOUND with `what`.
static int find_id(pg *db, const char *sql, int n, const char *const *params, char id[ID_UUID_TEXT],
                   const char *param, const char *what, err *e) {
    pg_result *r = NULL;
    if (pg_query(db, sql, n, params, &r, e))
        return -1;
    int rc = 0;
    if (pg_rows(r) == 1)
        column(r, 0, 0, id, ID_UUID_TEXT);
    else
        rc = err_set(e, ERR_NOT_FOUND, param, "%s", what);
    pg_result_free(r);
    return rc;
}

// The tenant's and user's rows, made when they are missing and create says so. user_id is filled.
static int find_owner(pg *db, const char *tenant, const char *user, bool create,
                      char user_id[ID_UUID_TEXT], err *e) {
    char fresh[ID_UUID_TEXT], tenant_id[ID_UUID_TEXT];
    id_uuid7(fresh);
    if (create &&
        pg_query(db, "INSERT INTO tenants (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", 2,
                 (const char *[]){fresh, tenant}, NULL, e))
        return -1;
    if (find_id(db, "SELECT id FROM tenants WHERE name = $1", 1, &tenant, tenant_id, "tenant",
                "no tenant of this name", e))
        return -1;
    id_uuid7(fresh);
    if (create &&
        pg_query(
            db,
            "INSERT INTO users (id, tenant_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", 3,
            (const char *[]){fresh, tenant_id, user}, NULL, e))
        return -1;
    return find_id(db, "SELECT id FROM users WHERE tenant_id = $1 AND name = $2", 2,
                   (const char *[]){tenant_id, user}, user_id, "user",
                   "no user of this name in the tenant", e);
}

static int insert_key(pg *db, const secret *pepper, const char *key, const char *user_id,
                      const char *name, unsigned roles, int64_t expires_in_s, char id[ID_UUID_TEXT],
                      err *e) {
    char public_id[9], hash[32 * 2 + 3] = "\\x", pepper_id[16], role_text[16], expires[24];
    uint8_t digest[32];
    id_uuid7(id);
    apikey_well_formed(key, APIKEY_TEXT - 1, public_id);
    apikey_hash(pepper, key, digest);
    id_hex(digest, sizeof digest, hash + 2);
    snprintf(pepper_id, sizeof pepper_id, "%u", pepper->id);
    snprintf(role_text, sizeof role_text, "%u", roles);
    snprintf(expires, sizeof expires, "%lld", (long long)expires_in_s);
    return pg_query(
        db,
        "INSERT INTO api_keys (id, public_id, user_id, name, pepper_id, hash, roles, expires_at) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, "
        "CASE WHEN $8::bigint > 0 THEN now() + $8::bigint * interval '1 second' END)",
        8, (const char *[]){id, public_id, user_id, name, pepper_id, hash, role_text, expires},
        NULL, e);
}

static bool is_tenant_name(const char *p) {
    size_t n = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789._-");
    return n >= 1 && n <= 63 && !p[n] && !strchr("._-", *p);
}

// Valid UTF-8 without control characters, at most 63 bytes.
static bool is_name(const char *p, size_t least) {
    size_t n = strlen(p);
    if (n < least || n > 63)
        return false;
    while (n) {
        utf8proc_int32_t code;
        utf8proc_ssize_t len =
            utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)n, &code);
        if (len <= 0 || code < 32 || code == 127)
            return false;
        p += len;
        n -= (size_t)len;
    }
    return true;
}

static int names_check(const char *tenant, const char *user, const char *name, err *e) {
    if (!is_tenant_name(tenant))
        return err_set(e, ERR_INVALID, "tenant",
                       "a tenant's name is 1 to 63 of a-z 0-9 . _ - and begins with a letter or "
                       "digit");
    if (!is_name(user, 1))
        return err_set(e, ERR_INVALID, "user",
                       "a user's name is 1 to 63 bytes of UTF-8 without control characters");
    if (!is_name(name, 0))
        return err_set(e, ERR_INVALID, "name",
                       "a key's name is at most 63 bytes of UTF-8 without control characters");
    return 0;
}

int apikey_create(pg *db, const secret_ring *pepper, const char *tenant, const char *user,
                  const char *name, unsigned roles, int64_t expires_in_s, bool create_missing,
                  char out[APIKEY_TEXT], apikey_row *row, err *e) {
    char user_id[ID_UUID_TEXT], id[ID_UUID_TEXT];
    if (names_check(tenant, user, name, e) ||
        find_owner(db, tenant, user, create_missing, user_id, e))
        return -1;
    apikey_make(out);
    pg_result *r = NULL;
    char sql[sizeof ROW_SQL + 32];
    snprintf(sql, sizeof sql, "%sWHERE k.id = $1", ROW_SQL);
    if (insert_key(db, &pepper->keys[0], out, user_id, name, roles, expires_in_s, id, e) ||
        pg_query(db, sql, 1, (const char *[]){id}, &r, e)) {
        secret_wipe(out, APIKEY_TEXT);
        return -1;
    }
    row_read(r, 0, row);
    pg_result_free(r);
    return 0;
}

int apikey_revoke(pg *db, const char *id_or_public_id, err *e) {
    char id[ID_UUID_TEXT];
    return find_id(db,
                   "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) "
                   "WHERE id::text = $1 OR public_id = $1 RETURNING id",
                   1, &id_or_public_id, id, "key", "no key with this id", e);
}

int apikey_list(pg *db, const char *tenant_or_null, apikey_row **rows, int *n, err *e) {
    pg_result *r = NULL;
    char sql[sizeof ROW_SQL + 96];
    snprintf(sql, sizeof sql,
             "%sWHERE $1::text IS NULL OR t.name = $1 ORDER BY t.name, u.name, k.created_at",
             ROW_SQL);
    if (pg_query(db, sql, 1, &tenant_or_null, &r, e))
        return -1;
    *n = pg_rows(r);
    *rows = calloc((size_t)*n + 1, sizeof **rows);
    if (!*rows) {
        pg_result_free(r);
        return err_set(e, ERR_INTERNAL, NULL, "no memory for %d keys", *n);
    }
    for (int i = 0; i < *n; i++)
        row_read(r, i, &(*rows)[i]);
    pg_result_free(r);
    return 0;
}

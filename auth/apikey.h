// API keys: making, parsing, hashing, and their rows. See auth.h for checking them in the gateway.
#ifndef AUTH_APIKEY_H
#define AUTH_APIKEY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"
#include "base/pg.h"
#include "base/secret.h"

#define APIKEY_TEXT 56 // "tg_live_" 8 "_" 32 6 and the NUL

void apikey_make(char out[APIKEY_TEXT]);
// Shape and checksum, without any look-up; public_id gets the 8 characters.
bool apikey_well_formed(const char *key, size_t n, char public_id[9]);
void apikey_hash(const secret *pepper, const char *key, uint8_t out[32]);

typedef struct apikey_row {
    char id[ID_UUID_TEXT], public_id[9], name[64], tenant[64], user[64], roles[32], created[32],
        expires[32], revoked[32], last_used[32];
} apikey_row; // texts; "" where null

// Creates a key for a user of a tenant (both by name, made when create_missing). The key is
// returned once.
int apikey_create(pg *db, const secret_ring *pepper, const char *tenant, const char *user,
                  const char *name, unsigned roles, int64_t expires_in_s, bool create_missing,
                  char out[APIKEY_TEXT], apikey_row *row, err *e);
int apikey_revoke(pg *db, const char *id_or_public_id, err *e); // ERR_NOT_FOUND
int apikey_list(pg *db, const char *tenant_or_null, apikey_row **rows, int *n,
                err *e); // caller frees rows

#endif

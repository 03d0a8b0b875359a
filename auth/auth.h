// Who is calling: API keys `tg_live_<8 id>_<32 base62><6 CRC32>`, checked first by checksum, then
// in a cache, then in Postgres. The key itself is stored nowhere: id + HMAC-SHA-256(pepper, key).
// LISTEN api_keys keeps the cache true: a revoked key stops within 2 s (5 s when notifications
// fail); while Postgres is away, known keys go on and unknown ones get ERR_DEPENDENCY, never
// ERR_KEY.
#ifndef AUTH_AUTH_H
#define AUTH_AUTH_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/config.h"
#include "base/err.h"
#include "base/id.h"
#include "base/loop.h"
#include "base/secret.h"
#include "base/thread.h"

typedef enum auth_role { ROLE_INFERENCE = 1, ROLE_ADMIN = 2 } auth_role; // bits

typedef struct principal {
    char tenant[ID_UUID_TEXT], user[ID_UUID_TEXT], key[ID_UUID_TEXT]; // ids
    char tenant_name[64], user_name[64], key_name[64];
    unsigned roles; // auth_role bits
    double weight;  // of the tenant in the queue
} principal;

typedef struct auth auth; // process-wide; any thread

// pool runs the look-ups that miss the cache.
int auth_open(const config *c, const secret_ring *pepper, pool *p, auth **out, err *e);
void auth_close(auth *a);

typedef enum auth_answer { AUTH_OK, AUTH_DENIED, AUTH_PENDING } auth_answer;
// The key as the client sent it. AUTH_OK: *out is filled. AUTH_DENIED: e says why (ERR_KEY, or
// ERR_DEPENDENCY). AUTH_PENDING: done(ctx, OK or DENIED, principal or NULL, err) is called on l
// later, exactly once.
typedef void auth_done(void *ctx, auth_answer answer, const principal *p, const err *e);
auth_answer auth_check(auth *a, const char *key, size_t n, loop *l, auth_done *done, void *ctx,
                       principal *out, err *e);
// Tells of every key that was revoked or expired (its id), from an own thread: running streams of
// it end.
void auth_on_revoked(auth *a, void (*fn)(void *ctx, const char *key_id), void *ctx);

#endif

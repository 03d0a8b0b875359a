// Reads and hashes only; who holds a key, and what it answers, is router/quota.lua's business. A
// client's key is stored nowhere, its hash is.
#include "server/openai_idempotency.h"
#include "base/id.h"
#include "base/secret.h"
#include <string.h>

#define KEY_MOST 255

int idempotency_read(const exchange *x, char out[IDEMPOTENCY_HASH], err *e) {
    const char *key = exchange_header(x, "idempotency-key");
    uint8_t hash[32];
    size_t n = key ? strlen(key) : 0, printable = 0;
    out[0] = '\0';
    if (!key)
        return 0;
    while (printable < n && key[printable] >= 0x20 && key[printable] <= 0x7e)
        printable++;
    if (n < 1 || n > KEY_MOST || printable < n)
        return err_set(e, ERR_INVALID, "idempotency-key",
                       "'Idempotency-Key' must be 1 to %d printable ASCII characters.", KEY_MOST);
    secret_sha256(key, n, hash);
    id_hex(hash, sizeof hash, out);
    return 0;
}

void idempotency_hash_body(const exchange *x, char out[IDEMPOTENCY_HASH]) {
    uint8_t parts[2][32], hash[32];
    size_t n;
    const char *body = exchange_body(x, &n), *path = exchange_path(x);
    secret_sha256(path, strlen(path), parts[0]);
    secret_sha256(body, n, parts[1]);
    secret_sha256(parts, sizeof parts, hash);
    id_hex(hash, sizeof hash, out);
}

// Reads and hashes only; who holds a key, and what it answers, is router/quota.lua's business. A
// client's key is stored nowhere, its hash is.
#include "server/openai_idempotency.h"
#include "base/secret.h"
#include <stdio.h>
#include <string.h>

#define KEY_MOST 255

static void put_hex(const uint8_t hash[32], char out[IDEMPOTENCY_HASH]) {
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", hash[i]);
}

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
    put_hex(hash, out);
    return 0;
}

void idempotency_hash_body(const exchange *x, char out[IDEMPOTENCY_HASH]) {
    uint8_t parts[2][32], hash[32];
    size_t n;
    const char *body = exchange_body(x, &n), *path = exchange_path(x);
    secret_sha256(path, strlen(path), parts[0]);
    secret_sha256(body, n, parts[1]);
    secret_sha256(parts, sizeof parts, hash);
    put_hex(hash, out);
}

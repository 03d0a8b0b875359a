// SHA-256 on the stack. OpenSSL 3's one-shot call fetches the algorithm and allocates a context
// each time, which the engine's step must not; its low-level calls, deprecated there, do neither.
// Any thread.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/secret.h"
#include <openssl/sha.h>

void secret_sha256(const void *p, size_t n, uint8_t out[32]) {
    SHA256_CTX c;
    if (!SHA256_Init(&c) || !SHA256_Update(&c, p, n) || !SHA256_Final(out, &c))
        fatal("OpenSSL cannot compute SHA-256");
}

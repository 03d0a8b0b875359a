// SHA-256 and its HMAC on the stack. OpenSSL 3's one-shot call fetches the algorithm and allocates
// a context each time, which the engine's step must not; its low-level calls, deprecated there, do
// neither. Any thread.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/secret.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };

void secret_sha256(const void *p, size_t n, uint8_t out[32]) {
    SHA256_CTX c;
    if (!SHA256_Init(&c) || !SHA256_Update(&c, p, n) || !SHA256_Final(out, &c))
        fatal("OpenSSL cannot compute SHA-256");
}

static int hash_all(int fd, uint8_t *piece, SHA256_CTX *c, void (*progress)(void *ctx, size_t n),
                    void *ctx, uint64_t *bytes) {
    ssize_t n;
    while ((n = read(fd, piece, PIECE)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (!SHA256_Update(c, piece, (size_t)n))
            fatal("OpenSSL cannot compute SHA-256");
        *bytes += (uint64_t)n;
        if (progress)
            progress(ctx, (size_t)n);
    }
    return 0;
}

int secret_sha256_file(const char *path, void (*progress)(void *ctx, size_t n), void *ctx,
                       uint8_t out[32], uint64_t *bytes, err *e) {
    SHA256_CTX c;
    uint8_t *piece = malloc(PIECE);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not hold us
    if (!piece || !SHA256_Init(&c))
        fatal("out of memory");
    *bytes = 0;
    int rc = 0;
    if (fd < 0 || hash_all(fd, piece, &c, progress, ctx, bytes))
        rc = err_set(e, ERR_IO, NULL, "cannot read %.200s: %s", path, strerror(errno));
    else if (!SHA256_Final(out, &c))
        fatal("OpenSSL cannot compute SHA-256");
    if (fd >= 0)
        close(fd);
    free(piece);
    return rc;
}

// RFC 2104; the key is shorter than a block.
void secret_hmac(const secret *s, const void *p, size_t n, uint8_t out[32]) {
    uint8_t inner[SHA256_CBLOCK], outer[SHA256_CBLOCK], hash[32];
    SHA256_CTX c;
    memset(inner, 0x36, sizeof inner);
    memset(outer, 0x5c, sizeof outer);
    for (int i = 0; i < SECRET_BYTES; i++) {
        inner[i] ^= s->key[i];
        outer[i] ^= s->key[i];
    }
    bool ok = SHA256_Init(&c) && SHA256_Update(&c, inner, sizeof inner) &&
              SHA256_Update(&c, p, n) && SHA256_Final(hash, &c) && SHA256_Init(&c) &&
              SHA256_Update(&c, outer, sizeof outer) && SHA256_Update(&c, hash, sizeof hash) &&
              SHA256_Final(out, &c);
    secret_wipe(inner, sizeof inner);
    secret_wipe(outer, sizeof outer);
    secret_wipe(&c, sizeof c);
    if (!ok)
        fatal("OpenSSL cannot compute HMAC-SHA-256");
}

// Secrets on disk and the primitives that use them (OpenSSL). A secret file lives in the data
// directory's secrets/, mode 0600, and holds an id and 32 bytes in hexadecimal; two are valid
// during rotation. Never logged; wiped on release.
#ifndef BASE_SECRET_H
#define BASE_SECRET_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"

#define SECRET_BYTES 32

typedef struct secret {
    uint32_t id;
    uint8_t key[SECRET_BYTES];
} secret;

typedef struct secret_ring { // the newest first; the newest seals and hashes, all open and verify
    secret keys[2];
    int n;
} secret_ring;

// Reads DIR/NAME ("ID HEX" a line, the newest first; not readable by others); when create and there
// is none, makes one from the kernel's random source.
int secret_ring_load(const char *dir, const char *name, bool create, secret_ring *out, err *e);
void secret_wipe(void *p, size_t n);
bool secret_equal(const void *a, const void *b, size_t n);                   // constant time
void secret_hmac(const secret *s, const void *p, size_t n, uint8_t out[32]); // HMAC-SHA-256
void secret_sha256(const void *p, size_t n, uint8_t out[32]);
// Of a whole file; *bytes is its size. progress(ctx, n) is called after every n more bytes; NULL:
// none. ERR_IO names the path.
int secret_sha256_file(const char *path, void (*progress)(void *ctx, size_t n), void *ctx,
                       uint8_t out[32], uint64_t *bytes, err *e);

// AES-256-GCM (NIST SP 800-38D). Appends id(4) nonce(12) ciphertext tag(16) to out; aad is bound,
// not stored.
int secret_seal(const secret_ring *ring, const void *aad, size_t n_aad, const void *p, size_t n,
                buf *out, err *e);
// Appends the plain text to out. ERR_FORMAT when the id is unknown or the tag does not match.
int secret_open(const secret_ring *ring, const void *aad, size_t n_aad, const void *p, size_t n,
                buf *out, err *e);

#endif

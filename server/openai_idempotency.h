// Idempotency-Key: the header, and the hashes by which a request is known again. Any thread.
#ifndef SERVER_OPENAI_IDEMPOTENCY_H
#define SERVER_OPENAI_IDEMPOTENCY_H
#include "base/err.h"
#include "server/http.h"

#define IDEMPOTENCY_HASH 65 // hexadecimal SHA-256 and its end

// "" when the client sent none. ERR_INVALID: not 1 to 255 printable ASCII characters.
int idempotency_read(const exchange *x, char out[IDEMPOTENCY_HASH], err *e);
// Of the path and the body.
void idempotency_hash_body(const exchange *x, char out[IDEMPOTENCY_HASH]);

#endif

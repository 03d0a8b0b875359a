// Shared pieces of the two codecs (job, reply): identifiers, short texts, token ids. Internal to
// router/.
#ifndef ROUTER_WIRE_H
#define ROUTER_WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/buf.h"
#include "base/cursor.h"
#include "base/id.h"

// 16 bytes. text that is no UUID is a broken invariant (fatal): ids are minted here, never taken
// from a client.
void wire_put_uuid(buf *b, const char *text);
void wire_uuid(cursor *c, char out[ID_UUID_TEXT]);
bool wire_is_uuid(const char *text, size_t n); // 36 lower-case characters, 8-4-4-4-12

// One length byte, then the bytes. Reading fails when the text does not fit into out[cap] or holds
// a NUL.
void wire_put_text(buf *b, const char *text);
void wire_text(cursor *c, char *out, size_t cap);

// A u32 count, then the ids. Reading fails for negative ids; the result is from the arena, NULL
// when *n is 0.
void wire_put_ids(buf *b, const int32_t *ids, int n);
int32_t *wire_ids(cursor *c, arena *a, int *n);

#endif

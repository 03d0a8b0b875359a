// Text that may hold anything, made fit for JSON.
#ifndef SERVER_OPENAI_TEXT_H
#define SERVER_OPENAI_TEXT_H
#include <stdbool.h>
#include <stddef.h>
#include "base/buf.h"

// Bytes of the UTF-8 character (RFC 3629: no surrogate, shortest form) at p[0..n), or 0 when there
// is none.
size_t text_character(const char *p, size_t n);
bool text_is_utf8(const char *p, size_t n);
// How many characters begin in p[0..n): bytes that continue one are not counted, so that the parts
// of a character that was cut add up to 1.
size_t text_count_characters(const char *p, size_t n);
// A JSON string; each byte that is not UTF-8 becomes U+FFFD.
void text_put_json(buf *out, const char *p, size_t n);
// A JSON array of byte values: [226,130,172].
void text_put_byte_array(buf *out, const char *p, size_t n);

#endif

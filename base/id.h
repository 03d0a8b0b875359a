// Identifiers: UUIDv7 (RFC 9562 section 5.7), random words, hexadecimal text.
#ifndef BASE_ID_H
#define BASE_ID_H
#include <stddef.h>
#include <stdint.h>

#define ID_UUID_TEXT 37 // 36 characters and the NUL

void id_random(void *out, size_t n); // from the kernel; fatal when it has none
uint64_t id_random_u64(void);
void id_uuid7(
    char out[ID_UUID_TEXT]); // lower case; later ids of one process sort after earlier ones
void id_hex(const void *p, size_t n, char *out);     // out: 2 n + 1 characters
void id_hex_u64(uint64_t v, int n, char *out);       // the last n digits and a NUL
int id_unhex(const char *text, void *out, size_t n); // exactly 2 n digits, else -1

#endif

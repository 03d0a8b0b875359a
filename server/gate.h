// Framing policy on the raw bytes of a connection, before any parser sees them: what is ambiguous
// is refused, so that no two readers can disagree where a request ends (RFC 9112; request
// smuggling). Pure functions over the caller's bytes; any thread.
#ifndef SERVER_GATE_H
#define SERVER_GATE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define GATE_HEADERS 100   // fields of one head; more is 431
#define GATE_ARGUMENTS 100 // parameters of one query

typedef enum gate_framing { GATE_NO_BODY, GATE_LENGTH, GATE_CHUNKED } gate_framing;

typedef struct gate_head {
    size_t bytes; // with the empty line
    gate_framing framing;
    uint64_t length; // of GATE_LENGTH
    bool is_http10;
} gate_head;

// Where the head that starts at p ends. *seen (0 at its start) is kept by the caller between calls
// so that no byte is looked at twice. 1: *bytes holds its length, the empty line included; 0: more
// bytes are needed; -1: refused, *status is 400 or 431.
int gate_find_end(const char *p, size_t n, size_t limit, size_t *seen, size_t *bytes, int *status,
                  err *e);
// Judges a whole head of n bytes. -1: refused, *status is 400 or 431; e->param names the field.
int gate_check(const char *p, size_t n, gate_head *out, int *status, err *e);

typedef struct gate_body {
    gate_framing framing;
    int state;
    int n_digits;
    uint64_t left;  // bytes of the current chunk or of the body
    uint64_t total; // bytes of body announced so far
    uint64_t limit;
    bool is_done;
} gate_body;

// -1: the announced length is over the limit (*status 413).
int gate_body_start(gate_body *b, const gate_head *head, uint64_t limit, int *status, err *e);
// Follows the body's framing through n bytes. *used: how many of them belong to this request.
// Chunks must be strictly framed: no extension, no trailer, no bare LF. -1: *status is 400 or 413.
int gate_body_scan(gate_body *b, const char *p, size_t n, size_t *used, int *status, err *e);

#endif

// Redis at the wire, and nobody else: blocking connections for threads, non-blocking ones for a
// loop (hiredis 0.14 up).
#ifndef BASE_REDIS_H
#define BASE_REDIS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/loop.h"

// address: "unix:/path" or "host:port".

typedef enum redis_kind {
    REDIS_NIL,
    REDIS_STRING,
    REDIS_STATUS,
    REDIS_INT,
    REDIS_ARRAY,
    REDIS_ERROR
} redis_kind;
typedef struct redis_value
    redis_value; // borrowed from its reply; opaque so that hiredis stays inside base
redis_kind redis_value_kind(const redis_value *v); // NULL: REDIS_ERROR (connection lost)
int64_t redis_value_int(const redis_value *v);     // also parses a decimal string; 0 otherwise
const char *redis_value_str(const redis_value *v,
                            size_t *n);       // string, status or error text; NULL otherwise
size_t redis_value_len(const redis_value *v); // elements of an array, else 0
const redis_value *redis_value_at(const redis_value *v, size_t i);
bool redis_value_is(const redis_value *v, const char *text); // a string or status equal to text

// ---- blocking, owned by one thread
typedef struct redis redis;
typedef struct redis_reply_box redis_reply_box;
int redis_connect(const char *address, int timeout_ms, redis **out, err *e);
void redis_close(redis *r); // NULL: nothing
// argv style. On 0 *out is the reply (free with redis_reply_free), which may be REDIS_ERROR. -1:
// connection lost; reconnect.
int redis_call(redis *r, int argc, const char *const *argv, const size_t *argv_len,
               redis_reply_box **out, err *e);
const redis_value *redis_reply_value(const redis_reply_box *b);
void redis_reply_free(redis_reply_box *b);
int redis_append(redis *r, int argc, const char *const *argv, const size_t *argv_len,
                 err *e); // pipeline; then:
int redis_get_reply(redis *r, redis_reply_box **out, err *e);

// ---- on a loop, owned by the loop's thread. Reconnects by itself with back-off (50 ms to 1 s).
typedef struct aredis aredis;
typedef void
aredis_fn(void *ctx, const redis_value *v); // v NULL: the connection was lost before an answer came
typedef void aredis_state_fn(void *ctx, bool connected);
aredis *aredis_open(loop *l, const char *address, aredis_state_fn *on_state,
                    void *ctx); // starts to connect
void aredis_close(aredis *r);   // every pending call gets NULL first
bool aredis_connected(const aredis *r);
// fn may be NULL. Not connected: fn gets NULL from the loop (never inside this call). Subscribe
// commands: fn is called per message.
void aredis_call(aredis *r, aredis_fn *fn, void *ctx, int argc, const char *const *argv,
                 const size_t *argv_len);

#endif

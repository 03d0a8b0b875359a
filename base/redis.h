// Redis at the wire, and nobody else: blocking connections for threads, non-blocking ones for a
// loop (hiredis 0.14 up).
#ifndef BASE_REDIS_H
#define BASE_REDIS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/loop.h"

// address: "unix:/path", "host:port" or "[ipv6]:port". Names are resolved when connecting, which
// may block. The first connection makes the process ignore SIGPIPE, which hiredis needs.
int redis_check_address(const char *address, err *e); // ERR_INVALID

typedef enum redis_kind {
    REDIS_NIL,
    REDIS_STRING,
    REDIS_STATUS,
    REDIS_INT,
    REDIS_ARRAY,
    REDIS_ERROR
} redis_kind;
// Borrowed from its reply; opaque so that hiredis stays inside base.
typedef struct redis_value redis_value;
redis_kind redis_value_kind(const redis_value *v); // NULL: REDIS_ERROR (connection lost)
int64_t redis_value_int(const redis_value *v);     // also parses a decimal string; 0 otherwise
// String, status or error text; NULL otherwise. n may be NULL.
const char *redis_value_str(const redis_value *v, size_t *n);
size_t redis_value_len(const redis_value *v); // elements of an array, else 0
const redis_value *redis_value_at(const redis_value *v, size_t i);
bool redis_value_is(const redis_value *v, const char *text); // a string or status equal to text

// ---- blocking, owned by one thread
typedef struct redis redis;
typedef struct redis_reply_box redis_reply_box;
// timeout_ms bounds the connecting and each wait for a reply (0: 2 s to connect, then no bound, for
// blocking commands).
int redis_connect(const char *address, int timeout_ms, redis **out, err *e);
void redis_close(redis *r); // NULL: nothing
// argv style. On 0 *out is the reply (free with redis_reply_free), which may be REDIS_ERROR. -1:
// connection lost; reconnect.
int redis_call(redis *r, int argc, const char *const *argv, const size_t *argv_len,
               redis_reply_box **out, err *e);
const redis_value *redis_reply_value(const redis_reply_box *b);
void redis_reply_free(redis_reply_box *b);
// A pipeline: append each, then get one reply for each.
int redis_append(redis *r, int argc, const char *const *argv, const size_t *argv_len, err *e);
int redis_get_reply(redis *r, redis_reply_box **out, err *e);

// ---- on a loop, owned by the loop's thread. Reconnects by itself with back-off (50 ms to 1 s).
typedef struct aredis aredis;
// v NULL: the connection was lost before an answer came. Borrowed until it returns.
typedef void aredis_fn(void *ctx, const redis_value *v);
typedef void aredis_state_fn(void *ctx, bool connected);
// Starts to connect; on_state (may be NULL) hears each change, the first true included, always from
// the loop. At a loss all pending calls get their NULL first. address was checked: fatal otherwise.
// Any callback may call aredis_close.
aredis *aredis_open(loop *l, const char *address, aredis_state_fn *on_state, void *ctx);
// Every pending call gets NULL first (calls made there are not taken); on_state hears nothing. r
// NULL: nothing.
void aredis_close(aredis *r);
bool aredis_connected(const aredis *r);
// The connection counts as lost when an answer is older than ms (default 0: never); not for
// blocking commands.
void aredis_set_limit(aredis *r, int ms);
// fn may be NULL; it is called exactly once. Not connected: with NULL from the loop (never inside
// this call). SUBSCRIBE and PSUBSCRIBE (on a connection used for nothing else): fn is called per
// message, and once with NULL at the loss; subscribe again in on_state. UNSUBSCRIBE: its fn is not
// called, the subscription's hears the confirmation.
void aredis_call(aredis *r, aredis_fn *fn, void *ctx, int argc, const char *const *argv,
                 const size_t *argv_len);

#endif

// HTTP/1.1 over TLS: reactors, each with its own SO_REUSEPORT listener, loop and libmicrohttpd
// daemon behind an OpenSSL transport. This header is the narrow interface everything above sees. An
// exchange is one request and its answer; its owner is its reactor's thread.
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/buf.h"
#include "base/config.h"
#include "base/err.h"
#include "base/loop.h"

typedef struct http_server http_server;
typedef struct reactor reactor;
typedef struct exchange exchange;

typedef struct http_options {
    config_listen listen; // port 0: the kernel chooses
    bool tls;
    const char *cert_path, *key_path; // PEM; used when tls
    int n_reactors;
    int max_connections; // over it: 503 at once, then close
    size_t body_bytes, head_bytes, stream_buffer_bytes;
    int head_ms; // to send a whole head (and to end a handshake); then 408 and close
    int idle_ms; // a kept connection without a request; 0: 75 s
    // 0: 30 s. A body must come at 1 KiB/s on average after that time (else 408), and a client must
    // take something of what waits for it within that time (else it is cut).
    int stall_ms;
    // The head is complete and passed the framing gate. May answer at once (401, 404, 405, 413 by
    // Content-Length): then the body is not read.
    void (*on_head)(exchange *x);
    // The whole request is here. Not called when on_head answered.
    void (*on_request)(exchange *x);
    // Errors of the transport itself (400 framing, 408, 413, 431, 503): fills the JSON body for
    // them. status, err -> body.
    void (*error_body)(int status, const err *e, buf *out);
    // On each reactor's thread, before it serves and after it stopped; user is reactor_user.
    int (*reactor_start)(reactor *r, void *ctx, err *e);
    void (*reactor_stop)(reactor *r, void *ctx);
    void *ctx;
} http_options;

// Binds and starts the threads. ERR_IO names address and reason ("address already in use": who to
// ask).
int http_start(const http_options *o, http_server **out, err *e);
uint16_t http_port(const http_server *s);
int http_reload_tls(
    http_server *s,
    err *e); // new connections use the new certificate; an unreadable one changes nothing
// From now on answers end their connections, and a connection without a request ends after a
// second.
void http_leave(http_server *s);
void http_stop_accepting(http_server *s); // leaves, and closes the listeners
int http_open_exchanges(const http_server *s);
int http_open_connections(const http_server *s);
void http_stop(http_server *s); // writes what was answered (1 s at most), ends the rest, joins

loop *reactor_loop(const reactor *r);
void reactor_set_user(reactor *r, void *user);
void *reactor_user(const reactor *r);
int reactor_index(const reactor *r);

// ---- the request (valid until the exchange's end)
reactor *exchange_reactor(const exchange *x);
arena *exchange_arena(exchange *x);
const char *exchange_id(const exchange *x); // UUIDv7, sent as x-request-id
const char *exchange_method(const exchange *x);
const char *exchange_path(const exchange *x);                     // decoded, without the query
const char *exchange_header(const exchange *x, const char *name); // NULL: absent
const char *exchange_query(const exchange *x, const char *name);
const char *exchange_body(const exchange *x, size_t *n);
const char *exchange_peer(const exchange *x);   // address, for logs
int64_t exchange_started_us(const exchange *x); // monotonic
// In and after `gone`: the status of the error that the transport answered; 0: the client left.
int exchange_refused(const exchange *x);
void exchange_set_user(exchange *x, void *user);
void *exchange_user(const exchange *x);

typedef struct exchange_events { // on the reactor's thread; any may be NULL
    // The socket took all bytes of stream_write calls up to the one with this mark. Comes from the
    // loop, never inside stream_write, at most once a turn (with the latest mark).
    void (*taken)(void *ctx, uint64_t mark);
    // The client vanished (FIN, RST, buffer over its cap, write error), or the transport refused
    // the rest of its request, before reply or stream_end was called. What is written after it goes
    // nowhere; the exchange lives until the handler calls exchange_abandon (reply and stream_end
    // count too). Before on_request it ends with this event. No event comes after reply, stream_end
    // or abandon. A half-close is no goodbye: over TLS, close_notify without a TCP FIN; on a plain
    // listener, a FIN within 100 ms of the request's end. Such a client gets its answer as long as
    // it takes it.
    void (*gone)(void *ctx);
} exchange_events;
void exchange_watch(exchange *x, const exchange_events *events, void *ctx);

// ---- the answer: exchange_reply once, or stream_begin, stream_write..., stream_end. May come at
// any later time from the reactor's thread.
void exchange_set_header(exchange *x, const char *name,
                         const char *value); // before reply or begin; copied
void exchange_reply(exchange *x, int status, const char *content_type, const void *p,
                    size_t n); // copied
void exchange_stream_begin(exchange *x, int status, const char *content_type);
void exchange_stream_write(exchange *x, const void *p, size_t n,
                           uint64_t mark); // copied or sent at once
// What was written goes out now (`taken` comes inside this call); where the socket does not take
// all of it, the connection is cut, so that what was not taken is never sent. What waits for the
// head is forgotten, and the stream may go on.
void exchange_stream_stop(exchange *x);
void exchange_stream_end(exchange *x); // the last chunk; the connection is kept if it may be
void exchange_abandon(
    exchange *x); // the answer ends here, whatever was sent; the connection closes

#endif

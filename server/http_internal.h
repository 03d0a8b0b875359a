// What http.c, http_conn.c, http_half.c and http_exchange.c share. Three objects of one reactor's
// thread: a `conn` is a client's socket with its TLS; a `half` is the libmicrohttpd connection
// behind it, joined by a socketpair and made when a head has passed the gate; an `exchange` is one
// request. Each may outlive the others, so each pointer between them is cleared by whoever ends
// first.
#ifndef SERVER_HTTP_INTERNAL_H
#define SERVER_HTTP_INTERNAL_H
#include "base/metric.h"
#include "server/gate.h"
#include "server/http.h"
#include <microhttpd.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>

#define SCRATCH_BYTES 16384   // one TLS record
#define OUT_HIGH_BYTES 65536u // over it nothing more is taken from libmicrohttpd
#define IN_HIGH_BYTES 65536u  // over it nothing more is read from the client
#define HALF_CLOSE_MS 100
#define LINGER_MS 2000
#define PEER_BYTES 64
#define SWEEP_MS 100
#define HALF_IDLE_MS 1000 // then an idle connection gives its half back

typedef struct conn conn;
typedef struct half half;
typedef struct pair {
    const char *name, *value;
} pair;

// List of states; the sweep holds each to its deadline. All conns stand in reactor.conns.
typedef enum conn_state {
    CONN_HANDSHAKE, // enters: accept with TLS. Leaves: handshake done, head_ms over
    CONN_HEAD,      // enters: handshake done, answer whole. Leaves: head judged, head_ms or idle_ms
    CONN_BODY,      // enters: head passed the gate. Leaves: body whole, refused, early answer
    CONN_ANSWER,    // enters: body whole. Leaves: libmicrohttpd finished the answer
    CONN_LINGER,    // enters: last byte of the last answer sent. Leaves: FIN, LINGER_MS over
    CONN_CLOSED     // in reactor.dead_conns until the end of the turn
} conn_state;

struct conn {
    conn *prev, *next; // reactor.conns, or (next) reactor.dead_conns
    conn *next_dirty;  // reactor.dirty: out or state changed in this turn
    reactor *reactor;
    int fd;
    SSL *ssl; // NULL: plain
    loop_io *io;
    conn_state state;
    bool is_dirty;
    bool is_refused;     // over max_connections: 503 after the handshake
    bool is_ending;      // no request will follow; linger once out is empty
    bool is_cut;         // abandoned or over its cap: close at the end of the turn
    bool fin;            // the client's FIN was seen
    bool read_ended;     // nothing more can be read (close_notify or FIN)
    bool wants_write;    // the last write or handshake step waits for EPOLLOUT
    bool discards;       // answered before its body was whole: what comes is thrown away
    bool is_idle;        // CONN_HEAD and nothing of a next request has come
    int64_t deadline_ms; // of the state; 0: none
    int64_t since_ms;    // request's end (CONN_ANSWER), idle since (CONN_HEAD), body's start
    int64_t wrote_ms;    // the client last took something, or out became non-empty
    buf in; // read, not yet given to the half; starts with `approved` bytes it may have
    size_t approved, seen;
    gate_body body;
    buf out; // to be written, from out_at on
    size_t out_at;
    uint64_t n_queued, n_taken; // bytes put into out, bytes the socket took
    half *half;
    exchange *x;
    uint64_t n_body; // bytes of body framing seen
    char peer[PEER_BYTES];
};

struct half {
    reactor *reactor;
    conn *conn;  // NULL: gone or given back
    exchange *x; // NULL: none in progress
    struct MHD_Connection *mhd;
    int fd, mhd_fd; // our end; libmicrohttpd's end
    loop_io *io;    // NULL while out is over OUT_HIGH_BYTES
    bool wants_write;
    bool is_complete; // libmicrohttpd finished the answer; what it wrote may still be in fd
    half *next_touched;
    bool is_touched; // in reactor.touched
};

// Who has the exchange. Freed when the handler is done and libmicrohttpd has let go of it.
struct exchange {
    exchange *prev, *next; // reactor.exchanges
    reactor *reactor;
    conn *conn; // NULL: the client is gone
    half *half; // NULL: libmicrohttpd is done with it
    arena arena;
    buf body;
    char id[37];
    const char *method, *path, *peer;
    pair *headers, *arguments, *set_headers;
    int n_headers, n_arguments, n_set_headers;
    int64_t started_us;
    void *user;
    const exchange_events *events;
    void *events_ctx;
    struct MHD_Response *response;
    int status;
    int refused;       // the transport answered with this status; 0: it did not
    bool is_asked;     // on_request was called
    bool is_suspended; // libmicrohttpd waits for us
    bool is_streaming, is_http10;
    bool is_head_sent; // libmicrohttpd wrote the stream's head into its half
    bool is_direct;    // and it has passed; stream_write goes to conn.out
    bool is_ended;     // stream_end was called
    bool is_done;      // the handler will not touch it again
    bool is_aborted;   // libmicrohttpd shall drop it
    buf early;         // stream bytes from before is_direct
    buf marks;         // stream_mark records
    size_t marks_at;
};

typedef struct stream_mark {
    uint64_t at; // conn.n_queued when its last byte was put
    uint64_t mark;
} stream_mark;

struct reactor {
    http_server *server;
    int index;
    loop *loop;
    int listen_fd, spare_fd; // spare_fd is given up to answer EMFILE
    loop_io *listen_io, *mhd_io;
    struct MHD_Daemon *mhd;
    loop_timer *sweep;
    pthread_t thread;
    bool runs_mhd;   // MHD_run is due
    int64_t stop_ms; // when it stops at the latest
    conn *conns, *dirty, *dead_conns;
    half **by_fd; // by mhd_fd, until libmicrohttpd says it has taken the connection in
    size_t n_by_fd;
    half *touched;
    exchange *exchanges;
    int n_halves;
    void *user;
    char scratch[SCRATCH_BYTES];
};

typedef struct http_metrics {
    metric *connections, *accepted, *shed, *handshakes_failed, *exchanges, *gone;
} http_metrics;

struct http_server {
    http_options o;
    http_metrics metrics;
    char *cert_path, *key_path;
    uint16_t port;
    pthread_mutex_t mutex; // tls, and the start and stop of reactors
    pthread_cond_t changed;
    SSL_CTX *tls;
    err start_error;
    int n_started, n_failed, n_quiet;
    atomic_int n_connections, n_exchanges;
    atomic_bool is_leaving, is_deaf;
    reactor *reactors;
};

// ---- http.c
void server_count_refusal(int status);
SSL_CTX *server_tls(http_server *s); // caller frees

// ---- http_conn.c
void conn_open(reactor *r, int fd, const char *peer, bool is_refused);
void conn_close(conn *c);      // at once; tells the exchange
void conn_mark_dirty(conn *c); // look at it at the end of the turn
void conn_end(conn *c);        // no request will follow: writes what waits, then closes
void conn_settle(conn *c);     // takes what was read, writes, sets what to wait for
void conn_put(conn *c, const void *p, size_t n);
int conn_drain(conn *c);  // writes what waits as far as the socket takes it; -1: broken
bool conn_flush(conn *c); // and tells `taken`; false: the socket did not take all of it
void conn_refuse(conn *c, int status, const err *e); // answers for the transport and ends
void conn_next_request(conn *c);                     // the answer is whole
void conn_sweep(reactor *r);
bool conn_is_full(const conn *c); // out is over OUT_HIGH_BYTES
int64_t conn_pending(const conn *c);

// ---- http_io.c: bytes to and from the client, TLS or plain
typedef enum io_result { IO_OK, IO_AGAIN, IO_END, IO_BROKEN } io_result;
io_result io_handshake(conn *c);
io_result io_read(conn *c, char *p, size_t n, size_t *got); // IO_END: close_notify or FIN
bool io_has_more(const conn *c); // bytes that TLS has read and not given; the loop does not tell
io_result io_write(conn *c, const char *p, size_t n, size_t *took);
void io_end_writing(conn *c); // close_notify and FIN

// ---- http_half.c
struct MHD_Daemon *half_daemon(reactor *r);
int half_open(conn *c);
void half_detach(half *h); // the conn lets go; libmicrohttpd ends it in its own time
int half_forward(conn *c); // approved bytes; 0: all or blocked, -1: the half is closed
void half_pump(half *h);   // libmicrohttpd's bytes into conn.out
void half_touch(half *h);
void half_unblock(half *h); // conn.out has room again
void half_run_touched(reactor *r);
void half_resume(exchange *x);

// ---- http_exchange.c
exchange *exchange_new(half *h, const char *url, const char *method, const char *version);
void exchange_gone(exchange *x); // the conn let go of it; tells the handler if it waits
void exchange_free(exchange *x);
void exchange_let_go(exchange *x); // frees when nobody has it
void exchange_go_direct(exchange *x);
void exchange_tell_taken(exchange *x);

#endif

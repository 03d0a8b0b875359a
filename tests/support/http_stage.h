// Two servers of the echo application on loopback, one plain and one TLS, with a certificate made
// for the test in a temporary directory. Header-only; used by the tests of server/http.h.
#ifndef TESTS_SUPPORT_HTTP_STAGE_H
#define TESTS_SUPPORT_HTTP_STAGE_H
#include "server/tls_cert.h"
#include "tests/support/echo_app.h"
#include "tests/support/wire.h"

typedef struct http_stage {
    char dir[64];
    tls_cert_paths paths;
    SSL_CTX *client; // trusts the private CA
    http_server *server;
    uint16_t port;
    bool is_tls;
} http_stage;

static inline SSL_CTX *stage_client(const char *ca) {
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_load_verify_locations(ctx, ca, NULL);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY);
    return ctx;
}

static inline void stage_open(http_stage *s, http_options o, bool is_tls) {
    err e = {0};
    *s = (http_stage){.is_tls = is_tls};
    strcpy(s->dir, "/tmp/http_test.XXXXXX");
    if (!mkdtemp(s->dir) || tls_cert_ensure(s->dir, "localhost,127.0.0.1", &s->paths, NULL, &e))
        fatal("stage: %s", e.message);
    o.tls = is_tls;
    o.cert_path = s->paths.cert;
    o.key_path = s->paths.key;
    if (http_start(&o, &s->server, &e))
        fatal("stage: %s", e.message);
    s->port = http_port(s->server);
    s->client = is_tls ? stage_client(s->paths.ca) : NULL;
    atomic_store(&echo_seen.gone, 0);
    atomic_store(&echo_seen.taken, 0);
    atomic_store(&echo_seen.ended, 0);
    atomic_store(&echo_seen.requests, 0);
    atomic_store(&echo_seen.heads, 0);
    atomic_store(&echo_seen.stopped, 0);
    atomic_store(&echo_seen.stopped_short, 0);
}

static inline void stage_close(http_stage *s) {
    char file[600];
    http_stop(s->server);
    SSL_CTX_free(s->client);
    static const char *const names[] = {"ca.pem", "ca.key", "server.pem", "server.key"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(file, sizeof file, "%s/%s", s->dir, names[i]);
        unlink(file);
    }
    rmdir(s->dir);
}

static inline wire stage_wire(http_stage *s) {
    wire w;
    if (wire_connect(&w, s->port, s->client, 0))
        fatal("stage: cannot connect");
    return w;
}

// Waits until *count is at least n; false after the limit.
static inline bool stage_wait(atomic_int *count, int n) {
    for (int64_t end = clock_mono_ms() + WIRE_WAIT_MS; clock_mono_ms() < end; clock_sleep_ms(1))
        if (atomic_load(count) >= n)
            return true;
    return false;
}

static inline bool stage_wait_quiet(http_stage *s) {
    for (int64_t end = clock_mono_ms() + WIRE_WAIT_MS; clock_mono_ms() < end; clock_sleep_ms(1))
        if (http_open_exchanges(s->server) == 0)
            return true;
    return false;
}

#endif

// What gateway.c, gateway_control.c and gateway_listen.c share: the process-wide parts of a
// gateway. Owner: the main thread, but for the list of seats.
#ifndef SERVER_GATEWAY_INTERNAL_H
#define SERVER_GATEWAY_INTERNAL_H
#include <pthread.h>
#include "base/config.h"
#include "base/loop.h"
#include "base/probe.h"
#include "base/secret.h"
#include "base/thread.h"
#include "router/request.h"
#include "server/http.h"
#include "server/openai_call.h"
#include "server/tls_cert.h"

#define GATEWAY_REACTORS 256 // the most that [gateway] reactors may say

typedef struct gateway gateway;

typedef struct gateway_drain { // a seat's part in the end
    gateway *g;
    seat *seat;
} gateway_drain;

struct gateway {
    config *c;
    const char *config_path;
    const char *const *sets;
    int n_sets;
    secret_ring pepper, cluster;
    catalogue *catalogue;
    pool *pool;
    auth *auth;
    assign *assign;
    router_shared *shared;
    http_server *api, *admin;
    probe *probe;
    bool has_own_cert; // made by us; ca is then for clients
    tls_cert_paths cert;
    pthread_mutex_t mutex;         // seats
    seat *seats[GATEWAY_REACTORS]; // enters: reactor_start; leaves: reactor_stop
    int n_seats;
    // main thread
    loop *loop;
    int signal_fd;
    _Atomic bool is_draining; // written by the main thread
    bool drains_routers;      // no client is left, or their time is over
    int n_undrained;          // seats whose router still has requests
    gateway_drain drains[GATEWAY_REACTORS];
};

// ---- gateway_listen.c
int gateway_find_cert(gateway *g, err *e);
int gateway_listen(gateway *g, err *e); // API and administration
int gateway_tell_ready(const gateway *g, int fd, err *e);

// ---- gateway_control.c
void gateway_block_signals(void); // before any thread is made
int gateway_watch_signals(gateway *g, err *e);
void gateway_key_revoked(void *ctx, const char *key_id); // auth_on_revoked

// From the configuration; the max_choices of it must be possible.
openai_limits gateway_limits(const config *c);

#endif

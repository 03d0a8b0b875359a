// The gateway's life: everything opened in the order in which it depends on each other, each with
// an error that says what to do; served until a signal; closed in reverse. Main thread. What the
// listeners serve is in routes.c; signals are in gateway_control.c.
#include "server/gateway.h"
#include "base/log.h"
#include "server/gateway_internal.h"
#include "server/openai_meter.h"
#include <stdio.h>
#include <unistd.h>

static int check(const config *c, err *e) {
    if (c->max_choices > JOB_CHOICES)
        return err_set(e, ERR_INVALID, "gateway.max_choices",
                       "[gateway] max_choices is %lld; at most %d are possible",
                       (long long)c->max_choices, JOB_CHOICES);
    if (c->n_models == 0)
        return err_set(e, ERR_INVALID, "model",
                       "no model is configured: add a section [model NAME] with path and tier");
    return 0;
}

static int load_secrets(gateway *g, err *e) {
    char dir[CONFIG_TEXT + 16];
    snprintf(dir, sizeof dir, "%s/secrets", g->c->data_dir);
    return secret_ring_load(dir, "pepper", true, &g->pepper, e) ||
                   secret_ring_load(dir, "cluster", true, &g->cluster, e)
               ? -1
               : 0;
}

static int open_parts(gateway *g, err *e) {
    const config *c = g->c;
    meter_register();
    if (load_secrets(g, e) || gateway_find_cert(g, e) || catalogue_open(c, &g->catalogue, e))
        return -1;
    g->pool = pool_new("gateway", (int)c->pool_threads);
    if (auth_open(c, &g->pepper, g->pool, &g->auth, e) ||
        assign_open(c->postgres_url, g->catalogue, &g->assign, e) ||
        router_shared_open(c, &g->cluster, &g->shared, e))
        return -1;
    auth_on_revoked(g->auth, gateway_key_revoked, g);
    return 0;
}

static const char *not_ready(void *ctx) {
    const gateway *g = ctx;
    return g->is_draining ? "the gateway is going out of service" : router_not_ready(g->shared);
}

static int listen_ops(gateway *g, err *e) {
    if (probe_start(&g->c->ops_listen, not_ready, g, &g->probe, e))
        return err_wrap(e, "[gateway] ops_listen");
    g->c->ops_listen.port = probe_port(g->probe);
    return 0;
}

// What is open when the gateway ends was not left by its clients.
static void cut_seats(gateway *g) {
    pthread_mutex_lock(&g->mutex);
    for (int i = 0; i < g->n_seats; i++)
        g->seats[i]->is_cut = true;
    pthread_mutex_unlock(&g->mutex);
}

static void close_parts(gateway *g) {
    cut_seats(g);
    probe_stop(g->probe);
    http_stop(g->admin);
    http_stop(g->api);
    pool_free(g->pool); // its work uses what follows
    if (g->shared)
        router_shared_close(g->shared);
    if (g->assign)
        assign_close(g->assign);
    if (g->auth)
        auth_close(g->auth);
    catalogue_close(g->catalogue);
    if (g->signal_fd >= 0)
        close(g->signal_fd);
    loop_free(g->loop);
    secret_wipe(&g->pepper, sizeof g->pepper);
    secret_wipe(&g->cluster, sizeof g->cluster);
    pthread_mutex_destroy(&g->mutex);
}

int gateway_run(config *c, const char *config_path, const char *const *sets, int n_sets,
                int ready_fd, err *e) {
    gateway g = {.c = c,
                 .config_path = config_path,
                 .sets = sets,
                 .n_sets = n_sets,
                 .signal_fd = -1,
                 .mutex = PTHREAD_MUTEX_INITIALIZER};
    int rc = -1;
    gateway_block_signals();
    g.loop = loop_new();
    if (check(c, e) || gateway_watch_signals(&g, e) || open_parts(&g, e) || gateway_listen(&g, e) ||
        listen_ops(&g, e))
        goto done;
    if (ready_fd >= 0 && gateway_tell_ready(&g, ready_fd, e))
        goto done;
    log_event(LOG_INFO, "gateway.serves", "{s:i,s:i}", "port", http_port(g.api), "models",
              catalogue_count(g.catalogue));
    loop_run(g.loop);
    log_event(LOG_INFO, "gateway.ends", NULL);
    rc = 0;
done:
    close_parts(&g);
    return rc;
}

// The gateway's listeners: certificate, one seat per reactor of the API, the administration
// listener, and the line that says where all of them are. A seat is made and unmade on its
// reactor's thread.
#include "server/gateway_internal.h"
#include "base/file.h"
#include "server/openai_error.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STOP_MS 15000 // for work that outlives its clients: longer than a database may take

// ---- certificate

int gateway_find_cert(gateway *g, err *e) {
    const config *c = g->c;
    char dir[CONFIG_TEXT + 8];
    if (!c->tls_cert[0] != !c->tls_key[0])
        return err_set(e, ERR_INVALID, c->tls_cert[0] ? "gateway.tls_key" : "gateway.tls_cert",
                       "[gateway] tls_cert and tls_key must be given together");
    g->has_own_cert = !c->tls_cert[0];
    if (g->has_own_cert) {
        snprintf(dir, sizeof dir, "%s/tls", c->data_dir);
        return tls_cert_ensure(dir, c->tls_names, &g->cert, NULL, e);
    }
    snprintf(g->cert.cert, sizeof g->cert.cert, "%s", c->tls_cert);
    snprintf(g->cert.key, sizeof g->cert.key, "%s", c->tls_key);
    return 0;
}

// ---- seats

openai_limits gateway_limits(const config *c) {
    return (openai_limits){.body_bytes = (size_t)c->body_bytes,
                           .json_depth = (int)c->json_depth,
                           .max_messages = (int)c->max_messages,
                           .max_choices = (int)c->max_choices};
}

static int seat_start(reactor *r, void *ctx, err *e) {
    gateway *g = ctx;
    seat *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory for a reactor");
    *s = (seat){.loop = reactor_loop(r),
                .auth = g->auth,
                .assign = g->assign,
                .catalogue = g->catalogue,
                .pool = g->pool,
                .limits = gateway_limits(g->c)};
    if (router_open(g->shared, s->loop, &s->router, e)) {
        free(s);
        return -1;
    }
    reactor_set_user(r, s);
    pthread_mutex_lock(&g->mutex);
    g->seats[g->n_seats++] = s;
    pthread_mutex_unlock(&g->mutex);
    return 0;
}

static void seat_leave(gateway *g, const seat *s) {
    pthread_mutex_lock(&g->mutex);
    for (int i = 0; i < g->n_seats; i++)
        if (g->seats[i] == s) {
            g->seats[i] = g->seats[--g->n_seats];
            break;
        }
    pthread_mutex_unlock(&g->mutex);
}

static void stop_loop(void *ctx) { loop_stop(ctx); }

// The clients are gone by now. What still works for them (pool, router) ends first: the loop runs
// on until the last call has ended, and until what was posted has been heard.
static void seat_stop(reactor *r, void *ctx) {
    seat *s = reactor_user(r);
    if (!s)
        return;
    seat_leave(ctx, s);
    router_close(s->router);
    s->is_stopping = true;
    loop_timer *guard = loop_timer_add(s->loop, STOP_MS, true, stop_loop, s->loop);
    if (s->n_calls == 0)
        loop_post(s->loop, stop_loop, s->loop);
    loop_run(s->loop);
    if (s->n_calls > 0) // threads still write to them
        fatal("%d requests do not end; the journal has what they used", s->n_calls);
    loop_timer_remove(s->loop, guard);
    reactor_set_user(r, NULL);
    buf_release(&s->scratch);
    free(s);
}

// ---- administration: its surface follows; the listener and its certificate are there

static void admin_head(exchange *x) {
    err e = {0};
    buf body = {0};
    if (strcmp(exchange_path(x), "/healthz") == 0) {
        exchange_reply(x, 200, "text/plain", "ok\n", 3);
        return;
    }
    err_set(&e, ERR_NOT_FOUND, NULL, "There is no such path: %.200s", exchange_path(x));
    openai_error_body(&e, &body);
    exchange_reply(x, openai_error_of(&e).status, "application/json", body.data, body.len);
    buf_release(&body);
}

// ---- listeners

static int count_reactors(const config *c) {
    if (c->reactors > 0)
        return (int)c->reactors;
    long cores = sysconf(_SC_NPROCESSORS_ONLN); // the kernels want most of them
    int n = (int)((cores + 3) / 4);
    return n < 1 ? 1 : n > 16 ? 16 : n;
}

static http_options common_options(const gateway *g) {
    const config *c = g->c;
    return (http_options){.tls = true,
                          .cert_path = g->cert.cert,
                          .key_path = g->cert.key,
                          .max_connections = (int)c->max_connections,
                          .body_bytes = (size_t)c->body_bytes,
                          .head_bytes = (size_t)c->head_bytes,
                          .stream_buffer_bytes = (size_t)c->stream_buffer_bytes,
                          .head_ms = (int)c->head_ms,
                          .error_body = openai_error_transport};
}

int gateway_listen(gateway *g, err *e) {
    http_options api = common_options(g), admin = common_options(g);
    api.listen = g->c->listen;
    api.tls = !g->c->plain_http;
    api.n_reactors = count_reactors(g->c);
    api.on_head = call_on_head;
    api.on_request = call_on_request;
    api.reactor_start = seat_start;
    api.reactor_stop = seat_stop;
    api.ctx = g;
    admin.listen = g->c->admin_listen;
    admin.n_reactors = 1;
    admin.on_head = admin_head;
    if (http_start(&api, &g->api, e))
        return err_wrap(e, "[gateway] listen");
    if (http_start(&admin, &g->admin, e))
        return err_wrap(e, "[gateway] admin_listen");
    g->c->listen.port = http_port(g->api); // port 0 is chosen now, for a reload too
    g->c->admin_listen.port = http_port(g->admin);
    return 0;
}

// ---- the ready line

// An address that a client on this machine can use.
static json_t *url(const config_listen *l, bool tls, const char *path) {
    bool is_any = !l->host[0] || strcmp(l->host, "0.0.0.0") == 0 || strcmp(l->host, "::") == 0;
    const char *host = is_any ? "localhost" : l->host;
    bool is_v6 = strchr(host, ':') != NULL;
    return json_sprintf("%s://%s%s%s:%u%s", tls ? "https" : "http", is_v6 ? "[" : "", host,
                        is_v6 ? "]" : "", l->port, path);
}

static json_t *model_names(const gateway *g) {
    json_t *names = json_array();
    for (int i = 0; i < catalogue_count(g->catalogue); i++)
        json_array_append_new(names, json_string(catalogue_at(g->catalogue, i)->config->name));
    return names;
}

int gateway_tell_ready(const gateway *g, int fd, err *e) {
    const config *c = g->c;
    json_t *line = json_pack(
        "{s:o,s:o,s:o,s:s?,s:o}", "base_url", url(&c->listen, !c->plain_http, "/v1"), "admin_url",
        url(&c->admin_listen, true, ""), "ops_url", url(&c->ops_listen, false, ""), "ca_file",
        g->has_own_cert ? g->cert.ca : NULL, "models", model_names(g));
    char *text = json_dumps(line, JSON_COMPACT);
    int rc =
        dprintf(fd, "%s\n", text) < 0
            ? err_set(e, ERR_IO, NULL, "cannot say on descriptor %d that the gateway serves: %s",
                      fd, strerror(errno))
            : 0;
    free(text);
    json_decref(line);
    return rc;
}

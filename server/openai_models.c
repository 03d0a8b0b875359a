// GET /v1/models and /v1/models/{id}: what the caller's tenant may use, by the names it may use.
// Reactor's thread; reads the assignments' snapshot.
#include "server/openai_call.h"
#include "server/openai_handlers.h"
#include <string.h>
#include <sys/stat.h>

#define MAX_NAMES 1024

static void put_member(buf *out, const char *name, const char *value) {
    buf_printf(out, ",\"%s\":", name);
    buf_put_json(out, value, strlen(value));
}

// When the model's file was made: the one time that is the same on every gateway.
static long long file_time(const char *path) {
    struct stat s;
    return stat(path, &s) ? 0 : (long long)s.st_mtime;
}

static void put_model(const call *c, const assign_target *t, buf *out) {
    const config_model *m = t->model->config;
    bool is_own = strcmp(t->name, m->name) == 0 && !t->adapter[0];
    buf_puts(out, "{\"id\":");
    buf_put_json(out, t->name, strlen(t->name));
    put_member(out, "object", "model");
    buf_printf(out, ",\"created\":%lld", file_time(m->path));
    put_member(out, "owned_by", t->adapter[0] ? c->who.tenant_name : "tiergate");
    buf_printf(out, ",\"max_model_len\":%d", t->model->max_context);
    put_member(out, "tier", m->tier);
    put_member(out, "root", m->name);
    if (is_own)
        buf_puts(out, ",\"parent\":null}");
    else {
        put_member(out, "parent", m->name);
        buf_puts(out, "}");
    }
}

void handle_models(call *c) {
    assign_target *targets = arena_alloc(exchange_arena(c->x), MAX_NAMES * sizeof *targets);
    int n = assign_list(c->seat->assign, c->who.tenant, targets, MAX_NAMES);
    buf body = {0};
    buf_puts(&body, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < n && i < MAX_NAMES; i++) {
        if (i)
            buf_puts(&body, ",");
        put_model(c, &targets[i], &body);
    }
    buf_puts(&body, "]}");
    call_reply(c, 200, &body);
    buf_release(&body);
}

void handle_model(call *c) {
    assign_target target;
    err e = {0};
    buf body = {0};
    // What a tenant may not use does not exist for it here.
    if (assign_find(c->seat->assign, c->who.tenant, c->rest, &target, &e)) {
        err_set(&e, ERR_MODEL_UNKNOWN, "model", "The model '%.64s' does not exist.", c->rest);
        call_fail(c, &e);
        return;
    }
    put_model(c, &target, &body);
    call_reply(c, 200, &body);
    buf_release(&body);
}

// Looking at records. Owns nothing; changes nothing. The sweeper (router/sweep.c) has a walk of its
// own, because it must go on when Redis comes and goes.
#include "router/record.h"
#include "router/queue.h"
#include <string.h>

#define AT_ONCE 256

static int call(redis *r, command *c, redis_reply_box **out, err *e) {
    int rc = command_call(c, r, out, e);
    command_release(c);
    if (!rc && redis_value_kind(redis_reply_value(*out)) == REDIS_ERROR) {
        rc = err_set(e, ERR_DEPENDENCY, NULL, "Redis refuses: %s",
                     redis_value_str(redis_reply_value(*out), NULL));
        redis_reply_free(*out);
        *out = NULL;
    }
    return rc;
}

static int read_set(redis *r, const char *prefix, const char *tenant, const char *suffix,
                    redis_reply_box **out, err *e) {
    command c = {0};
    command_text(&c, "SMEMBERS");
    command_printf(&c, "%s%s%s", prefix, tenant, suffix);
    return call(r, &c, out, e);
}

static int read_tenants(redis *r, redis_reply_box **out, err *e) {
    return read_set(r, "tg:tenants", "", "", out, e);
}

static const char *text_at(const redis_value *list, size_t i) {
    const char *text = redis_value_str(redis_value_at(list, i), NULL);
    return text ? text : "";
}

// ---- one

// 1: found, 0: not with this tenant.
static int find_with(redis *r, const char *tenant, const char *id, quota_record *out, err *e) {
    command c = {0};
    redis_reply_box *box = NULL;
    size_t n;
    command_text(&c, "GET");
    command_printf(&c, "tg:{%s}:r:%s", tenant, id);
    if (call(r, &c, &box, e))
        return -1;
    const char *text = redis_value_str(redis_reply_value(box), &n);
    int rc = !text ? 0 : quota_read_record(text, n, out, e) ? -1 : 1;
    redis_reply_free(box);
    return rc;
}

int record_find(redis *r, const char *id, quota_record *out, bool *found, err *e) {
    redis_reply_box *box = NULL;
    int rc = 0;
    *found = false;
    if (read_tenants(r, &box, e))
        return -1;
    const redis_value *tenants = redis_reply_value(box);
    for (size_t i = 0; rc == 0 && i < redis_value_len(tenants); i++)
        rc = find_with(r, text_at(tenants, i), id, out, e);
    redis_reply_free(box);
    *found = rc == 1;
    return rc < 0 ? -1 : 0;
}

// ---- all

typedef struct walk {
    redis *r;
    void (*each)(void *ctx, const char *id, const quota_record *record);
    void *ctx;
} walk;

static void tell(const walk *w, const char *id, const redis_value *v) {
    quota_record record;
    size_t n;
    const char *text = redis_value_kind(v) == REDIS_STRING ? redis_value_str(v, &n) : NULL;
    if (text) // else it was dropped meanwhile
        w->each(w->ctx, id, quota_read_record(text, n, &record, NULL) ? NULL : &record);
}

static int walk_some(const walk *w, const char *tenant, const redis_value *ids, size_t from,
                     size_t n, err *e) {
    command c = {0};
    redis_reply_box *box = NULL;
    command_text(&c, "MGET");
    for (size_t i = 0; i < n; i++)
        command_printf(&c, "tg:{%s}:r:%s", tenant, text_at(ids, from + i));
    if (call(w->r, &c, &box, e))
        return -1;
    for (size_t i = 0; i < n; i++)
        tell(w, text_at(ids, from + i), redis_value_at(redis_reply_value(box), i));
    redis_reply_free(box);
    return 0;
}

static int walk_tenant(const walk *w, const char *tenant, err *e) {
    redis_reply_box *box = NULL;
    if (read_set(w->r, "tg:{", tenant, "}:open", &box, e))
        return -1;
    const redis_value *ids = redis_reply_value(box);
    size_t n = redis_value_len(ids);
    int rc = 0;
    for (size_t at = 0; !rc && at < n; at += AT_ONCE)
        rc = walk_some(w, tenant, ids, at, n - at < AT_ONCE ? n - at : AT_ONCE, e);
    redis_reply_free(box);
    return rc;
}

int record_each(redis *r, void (*each)(void *ctx, const char *id, const quota_record *record),
                void *ctx, err *e) {
    redis_reply_box *box = NULL;
    walk w = {r, each, ctx};
    int rc = 0;
    if (read_tenants(r, &box, e))
        return -1;
    const redis_value *tenants = redis_reply_value(box);
    for (size_t i = 0; !rc && i < redis_value_len(tenants); i++)
        rc = walk_tenant(&w, text_at(tenants, i), e);
    redis_reply_free(box);
    return rc;
}

// ---- beside them

int record_gateway_is_alive(redis *r, uint64_t gateway, bool *out, err *e) {
    char key[64];
    command c = {0};
    redis_reply_box *box = NULL;
    queue_key_gateway(key, sizeof key, gateway);
    command_words(&c, 2, (const char *const[]){"EXISTS", key});
    if (call(r, &c, &box, e))
        return -1;
    *out = redis_value_int(redis_reply_value(box)) == 1;
    redis_reply_free(box);
    return 0;
}

int record_clock_ms(redis *r, int64_t *out, err *e) {
    command c = {0};
    redis_reply_box *box = NULL;
    command_text(&c, "TIME");
    if (call(r, &c, &box, e))
        return -1;
    const redis_value *v = redis_reply_value(box);
    *out =
        redis_value_int(redis_value_at(v, 0)) * 1000 + redis_value_int(redis_value_at(v, 1)) / 1000;
    redis_reply_free(box);
    return 0;
}

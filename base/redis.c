// Redis: addresses, values, and the blocking connection (hiredis). A connection belongs to one
// thread at a time. A call that failed leaves it unusable, so that a late answer is never taken for
// that of the next call. Does not reconnect.
#include "base/redis.h"
#include "base/redis_internal.h"
#include <errno.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECT_MS 2000

// ---- addresses

static int bad_address(const char *text, err *e) {
    return err_set(e, ERR_INVALID, NULL,
                   "\"%s\" is no address of Redis: want unix:/path, host:port or [ipv6]:port",
                   text);
}

static int parse_host(const char *text, redis_address *out, err *e) {
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || (text[0] != '[' && strchr(text, ':') != colon))
        return bad_address(text, e);
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || port < 1 || port > 65535)
        return bad_address(text, e);
    size_t n = (size_t)(colon - text), skip = 0;
    if (text[0] == '[') {
        if (n < 3 || text[n - 1] != ']')
            return bad_address(text, e);
        skip = 1;
    }
    if (n - 2 * skip >= sizeof out->host)
        return bad_address(text, e);
    memcpy(out->host, text + skip, n - 2 * skip);
    out->port = (int)port;
    return 0;
}

int redis_parse_address(const char *text, redis_address *out, err *e) {
    *out = (redis_address){0};
    if (strncmp(text, "unix:", 5) != 0)
        return parse_host(text, out, e);
    size_t n = strlen(text + 5);
    if (text[5] != '/' || n >= sizeof out->path)
        return bad_address(text, e);
    memcpy(out->path, text + 5, n);
    return 0;
}

int redis_check_address(const char *address, err *e) {
    redis_address parsed;
    return redis_parse_address(address, &parsed, e);
}

static void ignore_sigpipe_once(void) {
    struct sigaction now;
    if (sigaction(SIGPIPE, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) &&
        now.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
}

void redis_ignore_sigpipe(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ignore_sigpipe_once);
}

void redis_guard_tcp(int fd) {
    int on = 1, idle_s = 5, every_s = 2, probes = 3;
    unsigned unacked_ms = 5000;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof every_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked_ms, sizeof unacked_ms);
}

// ---- values

static const redisReply *reply_of(const redis_value *v) { return (const redisReply *)v; }

redis_kind redis_value_kind(const redis_value *v) {
    switch (v ? reply_of(v)->type : REDIS_REPLY_ERROR) {
    case REDIS_REPLY_STRING:
        return REDIS_STRING;
    case REDIS_REPLY_STATUS:
        return REDIS_STATUS;
    case REDIS_REPLY_INTEGER:
        return REDIS_INT;
    case REDIS_REPLY_ARRAY:
        return REDIS_ARRAY;
    case REDIS_REPLY_NIL:
        return REDIS_NIL;
    default: // the kinds of RESP3 are never asked for
        return REDIS_ERROR;
    }
}

int64_t redis_value_int(const redis_value *v) {
    redis_kind kind = redis_value_kind(v);
    if (kind == REDIS_INT)
        return reply_of(v)->integer;
    if (kind != REDIS_STRING)
        return 0;
    char *end;
    long long n = strtoll(reply_of(v)->str, &end, 10);
    return *end || end == reply_of(v)->str ? 0 : n;
}

const char *redis_value_str(const redis_value *v, size_t *n) {
    redis_kind kind = redis_value_kind(v);
    bool has = v && (kind == REDIS_STRING || kind == REDIS_STATUS || kind == REDIS_ERROR);
    if (n)
        *n = has ? (size_t)reply_of(v)->len : 0;
    return has ? reply_of(v)->str : NULL;
}

size_t redis_value_len(const redis_value *v) {
    return redis_value_kind(v) == REDIS_ARRAY ? reply_of(v)->elements : 0;
}

const redis_value *redis_value_at(const redis_value *v, size_t i) {
    return i < redis_value_len(v) ? (const redis_value *)reply_of(v)->element[i] : NULL;
}

bool redis_value_is(const redis_value *v, const char *text) {
    redis_kind kind = redis_value_kind(v);
    size_t n;
    const char *s = redis_value_str(v, &n);
    return s && kind != REDIS_ERROR && n == strlen(text) && memcmp(s, text, n) == 0;
}

// ---- blocking connection

struct redis {
    redisContext *c;
    char address[300];
};

static struct timeval to_timeval(int ms) {
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
}

static int lost(const redis *r, err *e) {
    bool is_late = r->c && r->c->err == REDIS_ERR_IO && (errno == EAGAIN || errno == ETIMEDOUT);
    err_set(e, ERR_DEPENDENCY, NULL, "Redis at %s does not answer: %s", r->address,
            is_late             ? "timed out"
            : r->c && r->c->err ? r->c->errstr
                                : "out of memory");
    if (e)
        e->retry_ms = 1000;
    return -1;
}

int redis_connect(const char *address, int timeout_ms, redis **out, err *e) {
    redis_address at;
    if (redis_parse_address(address, &at, e))
        return -1;
    redis_ignore_sigpipe();
    redis *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    snprintf(r->address, sizeof r->address, "%s", address);
    struct timeval wait = to_timeval(timeout_ms > 0 ? timeout_ms : CONNECT_MS);
    r->c = at.path[0] ? redisConnectUnixWithTimeout(at.path, wait)
                      : redisConnectWithTimeout(at.host, at.port, wait);
    struct timeval answer = to_timeval(timeout_ms > 0 ? timeout_ms : 0);
    if (!r->c || r->c->err || redisSetTimeout(r->c, answer) != REDIS_OK) {
        lost(r, e);
        redis_close(r);
        return -1;
    }
    if (!at.path[0])
        redis_guard_tcp(r->c->fd);
    *out = r;
    return 0;
}

void redis_close(redis *r) {
    if (!r)
        return;
    if (r->c)
        redisFree(r->c);
    free(r);
}

int redis_append(redis *r, int argc, const char *const *argv, const size_t *argv_len, err *e) {
    int rc = redisAppendCommandArgv(r->c, argc, (const char **)(uintptr_t)argv, argv_len);
    return rc == REDIS_OK ? 0 : lost(r, e);
}

int redis_get_reply(redis *r, redis_reply_box **out, err *e) {
    void *reply = NULL;
    if (redisGetReply(r->c, &reply) != REDIS_OK)
        return lost(r, e);
    if (out)
        *out = reply;
    else
        freeReplyObject(reply);
    return 0;
}

int redis_call(redis *r, int argc, const char *const *argv, const size_t *argv_len,
               redis_reply_box **out, err *e) {
    if (redis_append(r, argc, argv, argv_len, e))
        return -1;
    return redis_get_reply(r, out, e);
}

const redis_value *redis_reply_value(const redis_reply_box *b) { return (const redis_value *)b; }

void redis_reply_free(redis_reply_box *b) {
    if (b)
        freeReplyObject(b);
}

// Redis on a loop (hiredis' asynchronous interface over loop_io). Owns its connection, the calls
// that wait for an answer and the timers; all on the loop's thread. hiredis is told of nothing that
// could free it inside its own callbacks: what it reports (connected, lost) is noted and acted upon
// when it has returned. Does not queue while it is disconnected.
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/redis.h"
#include "base/redis_internal.h"
#include <hiredis/async.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>

#define CONNECT_MS 2000
#define BACKOFF_MIN_MS 50
#define BACKOFF_MAX_MS 1000
#define KEEP_BYTES 65536 // an encoding buffer up to this size is kept

typedef struct call {
    struct call *prev, *next;
    aredis *owner;
    aredis_fn *fn;
    void *ctx;
    int64_t sent_ms;
    int channels; // of a subscription, still subscribed; 0: an ordinary call
} call;

typedef struct call_list {
    call *first, *last;
} call_list;

struct aredis {
    loop *l;
    redis_address at;
    char name[300];
    aredis_state_fn *on_state;
    void *ctx;
    redisAsyncContext *ac; // NULL: none, waiting for the next try
    loop_io *io;
    uint32_t wanted; // EPOLL* bits hiredis asks for
    bool is_connected, has_connected, has_lost, is_closed;
    bool is_flush_due, is_flushing;
    int depth;         // how many functions of this file are on the stack and still need the struct
    call_list waiting; // entered by aredis_call, left by the answer or the loss
    call_list refused; // entered by aredis_call while disconnected, left by refuse_timer
    loop_timer *retry_timer, *connect_timer, *refuse_timer, *limit_timer;
    int backoff_ms, limit_ms;
    buf encoded; // scratch of aredis_call
};

static void start(aredis *r);

// ---- lists of calls

static void append(call_list *list, call *c) {
    c->prev = list->last;
    c->next = NULL;
    if (list->last)
        list->last->next = c;
    else
        list->first = c;
    list->last = c;
}

static void detach_call(call_list *list, call *c) {
    if (c->prev)
        c->prev->next = c->next;
    else
        list->first = c->next;
    if (c->next)
        c->next->prev = c->prev;
    else
        list->last = c->prev;
}

static void tell_lost(call_list *list) {
    call_list mine = *list; // what the callbacks add is for the next time
    *list = (call_list){0};
    while (mine.first) {
        call *c = mine.first;
        detach_call(&mine, c);
        if (c->fn)
            c->fn(c->ctx, NULL);
        free(c);
    }
}

// ---- life of the struct

static void leave(aredis *r) {
    if (--r->depth > 0 || !r->is_closed)
        return;
    buf_release(&r->encoded);
    free(r);
}

static void stop_timer(aredis *r, loop_timer **t) {
    loop_timer_remove(r->l, *t);
    *t = NULL;
}

// Forgets the connection; hiredis may still be on the stack and free it itself.
static void unhook(aredis *r) {
    redisAsyncContext *ac = r->ac;
    stop_timer(r, &r->connect_timer);
    loop_io_remove(r->l, r->io);
    r->io = NULL;
    r->ac = NULL;
    r->is_connected = r->has_connected = false;
    memset(&ac->ev, 0, sizeof ac->ev);
    ac->onConnect = NULL;
    ac->onDisconnect = NULL;
}

static void drop(aredis *r) {
    redisAsyncContext *ac = r->ac;
    unhook(r);
    redisAsyncFree(ac); // calls back with NULL, which on_reply ignores
}

static void retry(void *ctx) {
    aredis *r = ctx;
    r->retry_timer = NULL;
    start(r);
}

static void schedule_retry(aredis *r) {
    r->retry_timer = loop_timer_add(r->l, r->backoff_ms, false, retry, r);
    r->backoff_ms = r->backoff_ms * 2 < BACKOFF_MAX_MS ? r->backoff_ms * 2 : BACKOFF_MAX_MS;
}

// The connection is gone: everyone who waits hears it once, then the owner, then the next try is
// timed.
static void after_loss(aredis *r, bool was_connected) {
    r->depth++;
    tell_lost(&r->waiting);
    if (was_connected && !r->is_closed && r->on_state)
        r->on_state(r->ctx, false);
    if (!r->is_closed)
        schedule_retry(r);
    leave(r);
}

static void lose(aredis *r, const char *why) {
    bool was_connected = r->is_connected;
    if (was_connected)
        log_event(LOG_WARN, "redis.lost", "{s:s,s:s}", "address", r->name, "why", why);
    drop(r);
    after_loss(r, was_connected);
}

// ---- what hiredis reports

static void on_connect(const redisAsyncContext *ac, int status) {
    aredis *r = ac->data;
    if (status == REDIS_OK)
        r->has_connected = true;
    else
        r->has_lost = true; // hiredis frees the context when this returns
}

static void on_disconnect(const redisAsyncContext *ac, int status) {
    (void)status;
    ((aredis *)ac->data)->has_lost = true;
}

static bool ends_channel(const redisReply *v) {
    const redis_value *kind = redis_value_at((const redis_value *)v, 0);
    return redis_value_is(kind, "unsubscribe") || redis_value_is(kind, "punsubscribe");
}

static void on_reply(redisAsyncContext *ac, void *reply, void *ctx) {
    (void)ac;
    if (!reply)
        return; // a loss is told from our own list
    call *c = ctx;
    c->owner->backoff_ms =
        BACKOFF_MIN_MS; // it serves; a server that only accepts is retried ever more slowly
    aredis_fn *fn = c->fn;
    void *fn_ctx = c->ctx;
    bool is_over = c->channels == 0 || (ends_channel(reply) && --c->channels == 0) ||
                   ((redisReply *)reply)->type == REDIS_REPLY_ERROR;
    if (is_over) {
        detach_call(&c->owner->waiting, c);
        free(c);
    }
    if (fn)
        fn(fn_ctx, reply);
}

static void want(void *ctx, uint32_t set, uint32_t clear) {
    aredis *r = ctx;
    r->wanted = (r->wanted | set) & ~clear;
    loop_io_set(r->l, r->io, r->wanted);
}

static void add_read(void *ctx) { want(ctx, EPOLLIN, 0); }
static void del_read(void *ctx) { want(ctx, 0, EPOLLIN); }
static void del_write(void *ctx) { want(ctx, 0, EPOLLOUT); }

// ---- what the loop reports

static void flush(void *ctx);

// All commands of a turn are written together at its end; EPOLLOUT only for what the socket did not
// take then.
static void add_write(void *ctx) {
    aredis *r = ctx;
    if (!r->is_connected || r->is_flushing) {
        want(r, EPOLLOUT, 0);
    } else if (!r->is_flush_due) {
        r->is_flush_due = true;
        r->depth++;
        loop_defer(r->l, flush, r);
    }
}

static void become_connected(aredis *r) {
    r->has_connected = false;
    r->is_connected = true;
    stop_timer(r, &r->connect_timer);
    log_event(LOG_DEBUG, "redis.connected", "{s:s}", "address", r->name);
    if (r->on_state)
        r->on_state(r->ctx, true);
}

// hiredis has freed the context; only our side is left to clear.
static void become_lost(aredis *r) {
    bool was_connected = r->is_connected;
    if (was_connected)
        log_event(LOG_WARN, "redis.lost", "{s:s,s:s}", "address", r->name, "why",
                  "the connection was closed");
    r->has_lost = r->has_connected = r->is_connected = false;
    stop_timer(r, &r->connect_timer);
    loop_io_remove(r->l, r->io);
    r->io = NULL;
    r->ac = NULL;
    after_loss(r, was_connected);
}

static void on_io(void *ctx, uint32_t events) {
    aredis *r = ctx;
    bool failed = (events & (EPOLLERR | EPOLLHUP)) != 0;
    r->depth++;
    if (events & EPOLLIN || failed)
        redisAsyncHandleRead(r->ac);
    bool is_there = !r->is_closed && !r->has_lost && r->ac;
    if (is_there && (events & EPOLLOUT || failed))
        redisAsyncHandleWrite(r->ac);
    if (!r->is_closed && r->has_lost)
        become_lost(r);
    else if (!r->is_closed && r->has_connected)
        become_connected(r);
    leave(r);
}

static void flush(void *ctx) {
    aredis *r = ctx;
    r->is_flush_due = false;
    if (r->is_connected && !r->is_closed) {
        r->is_flushing = true;
        redisAsyncHandleWrite(r->ac);
        r->is_flushing = false;
        if (!r->is_closed && r->has_lost)
            become_lost(r);
    }
    leave(r);
}

static void on_connect_timeout(void *ctx) {
    aredis *r = ctx;
    r->connect_timer = NULL;
    lose(r, "no connection in time");
}

// ---- connecting

static redisAsyncContext *open_context(const aredis *r) {
    redisAsyncContext *ac = r->at.path[0] ? redisAsyncConnectUnix(r->at.path)
                                          : redisAsyncConnect(r->at.host, r->at.port);
    if (ac && ac->err) {
        redisAsyncFree(ac);
        ac = NULL;
    }
    if (ac && !r->at.path[0])
        redis_guard_tcp(ac->c.fd);
    return ac;
}

static void start(aredis *r) {
    redisAsyncContext *ac = open_context(r);
    r->wanted = 0;
    r->io = ac ? loop_io_add(r->l, ac->c.fd, 0, on_io, r) : NULL;
    if (!r->io) {
        if (ac)
            redisAsyncFree(ac);
        schedule_retry(r);
        return;
    }
    r->ac = ac;
    ac->data = r;
    ac->ev.data = r;
    ac->ev.addRead = add_read;
    ac->ev.delRead = del_read;
    ac->ev.addWrite = add_write;
    ac->ev.delWrite = del_write;
    redisAsyncSetDisconnectCallback(ac, on_disconnect);
    redisAsyncSetConnectCallback(ac, on_connect); // also asks for EPOLLOUT
    r->connect_timer = loop_timer_add(r->l, CONNECT_MS, false, on_connect_timeout, r);
}

aredis *aredis_open(loop *l, const char *address, aredis_state_fn *on_state, void *ctx) {
    err e = {0};
    aredis *r = calloc(1, sizeof *r);
    if (!r || redis_parse_address(address, &r->at, &e))
        fatal("cannot open a connection to Redis: %s", r ? e.message : "out of memory");
    redis_ignore_sigpipe();
    snprintf(r->name, sizeof r->name, "%s", address);
    r->l = l;
    r->on_state = on_state;
    r->ctx = ctx;
    r->backoff_ms = BACKOFF_MIN_MS;
    start(r);
    return r;
}

void aredis_close(aredis *r) {
    if (!r || r->is_closed)
        return;
    r->depth++;
    r->is_closed = true;
    if (r->ac)
        drop(r);
    stop_timer(r, &r->retry_timer);
    stop_timer(r, &r->refuse_timer);
    stop_timer(r, &r->limit_timer);
    tell_lost(&r->refused);
    tell_lost(&r->waiting);
    leave(r);
}

bool aredis_connected(const aredis *r) { return r->is_connected; }

static void check_limit(void *ctx) {
    aredis *r = ctx;
    const call *oldest = r->waiting.first;
    if (r->ac && oldest && oldest->channels == 0 && clock_mono_ms() - oldest->sent_ms > r->limit_ms)
        lose(r, "no answer in time");
}

void aredis_set_limit(aredis *r, int ms) {
    stop_timer(r, &r->limit_timer);
    r->limit_ms = ms;
    if (ms > 0)
        r->limit_timer = loop_timer_add(r->l, ms / 8 + 1, true, check_limit, r);
}

// ---- calls

static void tell_refused(void *ctx) {
    aredis *r = ctx;
    r->refuse_timer = NULL;
    r->depth++;
    tell_lost(&r->refused);
    leave(r);
}

static void refuse(aredis *r, call *c) {
    append(&r->refused, c);
    if (!r->refuse_timer)
        r->refuse_timer = loop_timer_add(r->l, 0, false, tell_refused, r);
}

static bool is_word(const char *word, size_t n, const char *text) {
    return n == strlen(text) && strncasecmp(word, text, n) == 0;
}

// RESP2, written here because hiredis prints it piece by piece.
static void encode(buf *out, int argc, const char *const *argv, const size_t *argv_len) {
    buf_clear(out);
    buf_put(out, "*", 1);
    buf_put_int(out, argc);
    for (int i = 0; i < argc; i++) {
        size_t n = argv_len ? argv_len[i] : strlen(argv[i]);
        buf_put(out, "\r\n$", 3);
        buf_put_int(out, (int64_t)n);
        buf_put(out, "\r\n", 2);
        buf_put(out, argv[i], n);
    }
    buf_put(out, "\r\n", 2);
}

static int send_command(aredis *r, redisCallbackFn *fn, void *ctx, int argc,
                        const char *const *argv, const size_t *argv_len) {
    encode(&r->encoded, argc, argv, argv_len);
    int rc = redisAsyncFormattedCommand(r->ac, fn, ctx, r->encoded.data, r->encoded.len);
    if (r->encoded.cap > KEEP_BYTES)
        buf_release(&r->encoded);
    return rc;
}

void aredis_call(aredis *r, aredis_fn *fn, void *ctx, int argc, const char *const *argv,
                 const size_t *argv_len) {
    size_t n = argv_len ? argv_len[0] : strlen(argv[0]);
    if (r->is_closed)
        return;
    bool ends = is_word(argv[0], n, "unsubscribe") || is_word(argv[0], n, "punsubscribe");
    bool starts = is_word(argv[0], n, "subscribe") || is_word(argv[0], n, "psubscribe");
    if (ends) {
        if (r->is_connected)
            send_command(r, NULL, NULL, argc, argv, argv_len);
        return;
    }
    call *c = calloc(1, sizeof *c);
    if (!c)
        fatal("out of memory for a call to Redis");
    *c = (call){.owner = r, .fn = fn, .ctx = ctx, .sent_ms = clock_mono_ms()};
    c->channels = starts ? argc - 1 : 0;
    if (r->is_connected && send_command(r, on_reply, c, argc, argv, argv_len) == REDIS_OK)
        append(&r->waiting, c);
    else
        refuse(r, c);
}

// Runs a loop of its own: a subscribed Redis connection, which comes back by itself, and a
// signalfd. A bell that was missed while the connection was away is made up for by ringing once
// when it is back.
#include "worker/listen.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "base/loop.h"
#include "base/redis.h"
#include "router/queue.h"

struct listener {
    loop *l;
    aredis *redis;
    inbox *to;
    char bell[96], cancel[64];
    int signal_fd;
    loop_io *signal_io;
    pthread_t thread;
};

static void on_cancel(listener *l, const char *text, size_t n) {
    note cancel = {.kind = NOTE_CANCEL};
    if (!queue_cancel_parse(text, n, cancel.id, &cancel.attempt, &cancel.run))
        inbox_put(l->to, &cancel);
}

// A pub/sub message: ["message", channel, payload]; confirmations of the subscription are passed
// over.
static void on_message(void *ctx, const redis_value *v) {
    listener *l = ctx;
    size_t n;
    if (redis_value_len(v) != 3 || !redis_value_is(redis_value_at(v, 0), "message"))
        return;
    if (redis_value_is(redis_value_at(v, 1), l->bell)) {
        inbox_ring(l->to);
        return;
    }
    const char *text = redis_value_str(redis_value_at(v, 2), &n);
    if (text)
        on_cancel(l, text, n);
}

static void on_state(void *ctx, bool connected) {
    listener *l = ctx;
    if (!connected)
        return;
    aredis_call(l->redis, on_message, l, 3, (const char *[]){"SUBSCRIBE", l->bell, l->cancel},
                NULL);
    inbox_ring(l->to);
}

static void on_signal(void *ctx, uint32_t events) {
    listener *l = ctx;
    struct signalfd_siginfo info;
    (void)events;
    while (read(l->signal_fd, &info, sizeof info) == sizeof info)
        inbox_stop(l->to);
}

static void *run(void *ctx) {
    listener *l = ctx;
    loop_run(l->l);
    return NULL;
}

listener *listener_start(const char *redis_address, const char *tier, uint64_t worker, inbox *to) {
    listener *l = calloc(1, sizeof *l);
    if (!l)
        fatal("no memory for the listener");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    l->to = to;
    l->l = loop_new();
    queue_key_bell(l->bell, sizeof l->bell, tier);
    queue_key_cancel(l->cancel, sizeof l->cancel, worker);
    l->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (l->signal_fd < 0)
        fatal("signalfd cannot be made");
    l->signal_io = loop_io_add(l->l, l->signal_fd, EPOLLIN, on_signal, l);
    l->redis = aredis_open(l->l, redis_address, on_state, l);
    if (pthread_create(&l->thread, NULL, run, l))
        fatal("the listener's thread cannot be made");
    return l;
}

void listener_stop(listener *l) {
    loop_stop(l->l);
    pthread_join(l->thread, NULL);
    aredis_close(l->redis);
    loop_io_remove(l->l, l->signal_io);
    close(l->signal_fd);
    loop_free(l->l);
    free(l);
}

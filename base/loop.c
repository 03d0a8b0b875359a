// One epoll loop. Owns its epoll descriptor, an eventfd that wakes it, a heap of timers and the
// inbox. Runs on one thread; only the inbox (a mutex) and the stop flag are shared. A turn: wait,
// descriptors, timers, inbox, tick, what was deferred. Handles removed during a turn are freed at
// its end, because events already fetched may still name them.
#include "base/loop.h"
#include "base/clock.h"
#include "base/err.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EVENTS_A_TURN 256

struct loop_io {
    loop_io *prev, *next; // in loop.live or (next only) loop.dead
    int fd;
    uint32_t events;
    bool is_dead;
    loop_io_fn *fn;
    void *ctx;
};

struct loop_timer {
    int64_t due_us;
    int64_t period_us; // 0: once
    size_t at;         // place in the heap; NO_PLACE while a one-shot fires
    loop_fn *fn;
    void *ctx;
};
#define NO_PLACE SIZE_MAX

typedef struct letter {
    loop_fn *fn;
    void *ctx;
} letter;

typedef struct letters {
    letter *items;
    size_t n, cap;
} letters;

struct loop {
    int epoll_fd, wake_fd;
    int64_t now_us;
    loop_io *live, *dead; // dead: entered by loop_io_remove, left at the end of a turn
    loop_timer **heap;    // earliest first
    size_t n_timers, cap_timers;
    int (*tick)(void *ctx);
    void *tick_ctx;
    int tick_ms;
    letters deferred; // entered by loop_defer, left at the end of a turn
    bool has_own;     // letters of its own thread, which woke nobody
    _Atomic bool stopping, is_running;
    _Atomic(pthread_t) owner;
    pthread_mutex_t inbox_mutex;
    letters inbox;   // under inbox_mutex; entered by any thread, left by a turn
    letters reading; // the loop's own: what this turn took from the inbox
};

// ---- start and end

static void *must(void *p) {
    if (!p)
        fatal("out of memory in an event loop");
    return p;
}

loop *loop_new(void) {
    loop *l = must(calloc(1, sizeof *l));
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = NULL};
    if (l->epoll_fd < 0 || l->wake_fd < 0 ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->wake_fd, &wake))
        fatal("cannot make an event loop: %s", strerror(errno));
    pthread_mutex_init(&l->inbox_mutex, NULL);
    atomic_store(&l->owner, pthread_self());
    l->now_us = clock_mono_us();
    return l;
}

static void free_ios(loop_io **list) {
    while (*list) {
        loop_io *next = (*list)->next;
        free(*list);
        *list = next;
    }
}

// What these defer is for the next turn, which comes at once.
static void run_deferred(loop *l) {
    size_t n = l->deferred.n;
    for (size_t i = 0; i < n; i++)
        l->deferred.items[i].fn(l->deferred.items[i].ctx);
    l->deferred.n -= n;
    if (l->deferred.n)
        memmove(l->deferred.items, l->deferred.items + n, l->deferred.n * sizeof(letter));
}

void loop_free(loop *l) {
    if (!l)
        return;
    run_deferred(l);
    free_ios(&l->live);
    free_ios(&l->dead);
    for (size_t i = 0; i < l->n_timers; i++)
        free(l->heap[i]);
    free(l->heap);
    free(l->inbox.items);
    free(l->reading.items);
    free(l->deferred.items);
    pthread_mutex_destroy(&l->inbox_mutex);
    close(l->wake_fd);
    close(l->epoll_fd);
    free(l);
}

// ---- descriptors

loop_io *loop_io_add(loop *l, int fd, uint32_t events, loop_io_fn *fn, void *ctx) {
    loop_io *io = must(calloc(1, sizeof *io));
    *io = (loop_io){.next = l->live, .fd = fd, .events = events, .fn = fn, .ctx = ctx};
    struct epoll_event want = {.events = events, .data.ptr = io};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &want)) {
        free(io);
        return NULL;
    }
    if (l->live)
        l->live->prev = io;
    l->live = io;
    return io;
}

void loop_io_set(loop *l, loop_io *io, uint32_t events) {
    if (!io || io->is_dead || io->events == events)
        return;
    struct epoll_event want = {.events = events, .data.ptr = io};
    io->events = events;
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, io->fd, &want))
        fatal("cannot change the events of descriptor %d: %s", io->fd, strerror(errno));
}

void loop_io_remove(loop *l, loop_io *io) {
    if (!io || io->is_dead)
        return;
    epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, io->fd, NULL); // fails when the caller closed it already
    if (io->prev)
        io->prev->next = io->next;
    else
        l->live = io->next;
    if (io->next)
        io->next->prev = io->prev;
    io->is_dead = true;
    io->next = l->dead;
    l->dead = io;
}

// ---- timers: a binary heap, each timer knows its place

static bool is_before(const loop_timer *a, const loop_timer *b) { return a->due_us < b->due_us; }

static void put_at(loop *l, size_t at, loop_timer *t) {
    l->heap[at] = t;
    t->at = at;
}

static void sift_up(loop *l, loop_timer *t) {
    size_t at = t->at;
    for (; at > 0 && is_before(t, l->heap[(at - 1) / 2]); at = (at - 1) / 2)
        put_at(l, at, l->heap[(at - 1) / 2]);
    put_at(l, at, t);
}

static void sift_down(loop *l, loop_timer *t) {
    size_t at = t->at;
    for (size_t child; (child = 2 * at + 1) < l->n_timers; at = child) {
        if (child + 1 < l->n_timers && is_before(l->heap[child + 1], l->heap[child]))
            child++;
        if (!is_before(l->heap[child], t))
            break;
        put_at(l, at, l->heap[child]);
    }
    put_at(l, at, t);
}

static void heap_remove(loop *l, loop_timer *t) {
    loop_timer *last = l->heap[--l->n_timers];
    if (last != t) {
        put_at(l, t->at, last);
        sift_up(l, last);
        sift_down(l, last);
    }
    t->at = NO_PLACE;
}

loop_timer *loop_timer_add(loop *l, int ms, bool repeat, loop_fn *fn, void *ctx) {
    if (l->n_timers == l->cap_timers) {
        l->cap_timers = l->cap_timers ? l->cap_timers * 2 : 16;
        l->heap = must(realloc(l->heap, l->cap_timers * sizeof(loop_timer *)));
    }
    int64_t wait_us = (int64_t)(ms < 0 ? 0 : ms) * 1000;
    loop_timer *t = must(calloc(1, sizeof *t));
    *t = (loop_timer){.due_us = clock_mono_us() + wait_us,
                      .period_us = !repeat       ? 0
                                   : wait_us > 0 ? wait_us
                                                 : 1000,
                      .fn = fn,
                      .ctx = ctx};
    put_at(l, l->n_timers++, t);
    sift_up(l, t);
    return t;
}

void loop_timer_remove(loop *l, loop_timer *t) {
    if (!t || t->at == NO_PLACE)
        return;
    heap_remove(l, t);
    free(t);
}

static void fire(loop *l, loop_timer *t) {
    if (t->period_us) {
        t->due_us = l->now_us + t->period_us;
        sift_down(l, t);
        t->fn(t->ctx); // may remove and so free t
    } else {
        heap_remove(l, t);
        t->fn(t->ctx);
        free(t);
    }
}

// now_us stands still during a turn, so a timer that re-arms itself at once waits for the next turn
// and starves nobody.
static void fire_due(loop *l) {
    while (l->n_timers > 0 && l->heap[0]->due_us <= l->now_us)
        fire(l, l->heap[0]);
}

// ---- inbox

static void wake(loop *l) {
    uint64_t one = 1;
    while (write(l->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ; // EAGAIN: the counter is full, so it is awake anyway
}

static void put_letter(letters *to, loop_fn *fn, void *ctx) {
    if (to->n == to->cap) {
        to->cap = to->cap ? to->cap * 2 : 64;
        to->items = must(realloc(to->items, to->cap * sizeof(letter)));
    }
    to->items[to->n++] = (letter){fn, ctx};
}

void loop_post(loop *l, loop_fn *fn, void *ctx) {
    pthread_mutex_lock(&l->inbox_mutex);
    put_letter(&l->inbox, fn, ctx);
    if (atomic_load(&l->is_running) && loop_is_here(l))
        l->has_own = true;
    else if (l->inbox.n == 1 || !atomic_load(&l->is_running))
        wake(l);
    pthread_mutex_unlock(&l->inbox_mutex); // from now on the letter may be heard and the loop freed
}

void loop_defer(loop *l, loop_fn *fn, void *ctx) { put_letter(&l->deferred, fn, ctx); }

static void read_inbox(loop *l) {
    l->has_own = false;
    pthread_mutex_lock(&l->inbox_mutex);
    letters taken = l->inbox;
    l->inbox = l->reading;
    l->reading = taken;
    pthread_mutex_unlock(&l->inbox_mutex);
    for (size_t i = 0; i < l->reading.n; i++)
        l->reading.items[i].fn(l->reading.items[i].ctx);
    l->reading.n = 0;
}

// ---- running

void loop_set_tick(loop *l, int (*tick)(void *ctx), void *ctx) {
    l->tick = tick;
    l->tick_ctx = ctx;
    l->tick_ms = tick ? 0 : -1;
}

static int sleep_ms(const loop *l) {
    if (l->has_own || l->deferred.n)
        return 0;
    int64_t most = l->tick ? l->tick_ms : -1;
    if (l->n_timers > 0) {
        int64_t wait = (l->heap[0]->due_us - clock_mono_us() + 999) / 1000;
        wait = wait < 0 ? 0 : wait;
        if (most < 0 || wait < most)
            most = wait;
    }
    return most > INT_MAX ? INT_MAX : (int)most;
}

static void dispatch(loop *l, const struct epoll_event *events, int n) {
    for (int i = 0; i < n; i++) {
        loop_io *io = events[i].data.ptr;
        uint64_t count;
        if (!io) {
            ssize_t got = read(l->wake_fd, &count, sizeof count); // only to make it quiet again
            (void)got;
        } else if (!io->is_dead) {
            io->fn(io->ctx, events[i].events);
        }
    }
}

static void run_turn(loop *l) {
    struct epoll_event events[EVENTS_A_TURN];
    int n = epoll_wait(l->epoll_fd, events, EVENTS_A_TURN, sleep_ms(l));
    if (n < 0 && errno != EINTR)
        fatal("an event loop cannot wait: %s", strerror(errno));
    l->now_us = clock_mono_us();
    dispatch(l, events, n);
    fire_due(l);
    read_inbox(l);
    if (l->tick)
        l->tick_ms = l->tick(l->tick_ctx);
    run_deferred(l);
    free_ios(&l->dead);
}

void loop_run(loop *l) {
    atomic_store(&l->owner, pthread_self());
    atomic_store(&l->is_running, true);
    l->now_us = clock_mono_us();
    while (!atomic_load(&l->stopping))
        run_turn(l);
    atomic_store(&l->is_running, false);
    atomic_store(&l->stopping, false);
}

void loop_stop(loop *l) {
    atomic_store(&l->stopping, true);
    wake(l);
}

int64_t loop_now_ms(const loop *l) { return l->now_us / 1000; }

bool loop_is_here(const loop *l) {
    return pthread_equal(atomic_load(&((loop *)l)->owner), pthread_self()) != 0;
}

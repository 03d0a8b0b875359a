// The event loop and the thread pool.
#include "base/loop.h"
#include "base/clock.h"
#include "base/thread.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

static void stop(void *ctx) { loop_stop(ctx); }

static void run_for(loop *l, int ms) {
    loop_timer_add(l, ms, false, stop, l);
    loop_run(l);
}

// ---- descriptors

typedef struct end {
    loop *l;
    loop_io *io, *other; // other: removed by the first one that is called
    int fds[2], n_calls;
    struct end *peer;
} end;

static void read_one(void *ctx, uint32_t events) {
    end *x = ctx;
    char c;
    assert_true(events & EPOLLIN);
    assert_int_equal(read(x->fds[0], &c, 1), 1);
    x->n_calls++;
}

static void a_descriptor_is_told_as_long_as_it_is_ready(void **state) {
    (void)state;
    loop *l = loop_new();
    end x = {.l = l};
    assert_int_equal(pipe(x.fds), 0);
    x.io = loop_io_add(l, x.fds[0], EPOLLIN, read_one, &x);
    assert_int_equal(write(x.fds[1], "abc", 3), 3);
    run_for(l, 30);
    assert_int_equal(x.n_calls, 3);
    loop_io_set(l, x.io, 0);
    assert_int_equal(write(x.fds[1], "d", 1), 1);
    run_for(l, 30);
    assert_int_equal(x.n_calls, 3);
    loop_io_set(l, x.io, EPOLLIN);
    run_for(l, 30);
    assert_int_equal(x.n_calls, 4);
    assert_null(loop_io_add(l, 987654, EPOLLIN, read_one, &x));
    loop_io_remove(l, x.io);
    loop_io_remove(l, NULL);
    loop_free(l);
    close(x.fds[0]);
    close(x.fds[1]);
}

static void remove_both(void *ctx, uint32_t events) {
    (void)events;
    end *x = ctx;
    x->n_calls++;
    loop_io_remove(x->l, x->peer->io);
    loop_io_remove(x->l, x->io);
    close(x->peer->fds[0]); // a new descriptor may get the number at once
    close(x->fds[0]);
}

static void a_callback_may_remove_itself_and_others_of_the_same_turn(void **state) {
    (void)state;
    loop *l = loop_new();
    end a = {.l = l}, b = {.l = l, .peer = &a};
    a.peer = &b;
    assert_int_equal(pipe(a.fds) | pipe(b.fds), 0);
    a.io = loop_io_add(l, a.fds[0], EPOLLIN, remove_both, &a);
    b.io = loop_io_add(l, b.fds[0], EPOLLIN, remove_both, &b);
    assert_int_equal(write(a.fds[1], "x", 1) + write(b.fds[1], "x", 1), 2);
    run_for(l, 30);
    assert_int_equal(a.n_calls + b.n_calls, 1);
    loop_free(l);
    close(a.fds[1]);
    close(b.fds[1]);
}

static void thousands_of_descriptors_are_served(void **state) {
    (void)state;
    enum { N = 2000 };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 2 * N + 100) {
        puts("skip: fewer than 4,100 descriptors are allowed");
        skip();
    }
    static end ends[N];
    loop *l = loop_new();
    for (int i = 0; i < N; i++) {
        ends[i] = (end){.l = l};
        assert_int_equal(pipe(ends[i].fds), 0);
        ends[i].io = loop_io_add(l, ends[i].fds[0], EPOLLIN, read_one, &ends[i]);
        assert_int_equal(write(ends[i].fds[1], "x", 1), 1);
    }
    run_for(l, 100);
    for (int i = 0; i < N; i++) {
        assert_int_equal(ends[i].n_calls, 1);
        loop_io_remove(l, ends[i].io);
        close(ends[i].fds[0]);
        close(ends[i].fds[1]);
    }
    loop_free(l);
}

// ---- timers

typedef struct shot {
    loop *l;
    loop_timer *t;
    int64_t due_us, due_most_us, *last_due_us; // the loop's own lies between the two
    int n_fired, most;
} shot;

static void fire_in_order(void *ctx) {
    shot *s = ctx;
    assert_true(clock_mono_us() >= s->due_us);
    assert_true(s->due_most_us >= *s->last_due_us);
    *s->last_due_us = s->due_us;
    s->n_fired++;
}

static void thousands_of_timers_fire_once_in_order_and_never_early(void **state) {
    (void)state;
    enum { N = 5000 };
    static shot shots[N];
    int64_t last = 0;
    loop *l = loop_new();
    srand(7);
    for (int i = 0; i < N; i++) {
        int ms = rand() % 200;
        shots[i] = (shot){.l = l, .due_us = clock_mono_us() + ms * 1000, .last_due_us = &last};
        shots[i].t = loop_timer_add(l, ms, false, fire_in_order, &shots[i]);
        shots[i].due_most_us = clock_mono_us() + ms * 1000;
    }
    for (int i = 0; i < N; i += 3)
        loop_timer_remove(l, shots[i].t);
    run_for(l, 300);
    for (int i = 0; i < N; i++)
        assert_int_equal(shots[i].n_fired, i % 3 ? 1 : 0);
    loop_free(l);
}

static void count_to(void *ctx) {
    shot *s = ctx;
    if (++s->n_fired == s->most) {
        loop_timer_remove(s->l, s->t);
        loop_stop(s->l);
    }
}

static void a_repeating_timer_may_remove_itself(void **state) {
    (void)state;
    loop *l = loop_new();
    shot s = {.l = l, .most = 5};
    int64_t before = clock_mono_ms();
    s.t = loop_timer_add(l, 10, true, count_to, &s);
    loop_run(l);
    assert_true(clock_mono_ms() - before >= 49);
    run_for(l, 40);
    assert_int_equal(s.n_fired, 5);
    loop_free(l);
}

static void remove_own_one_shot(void *ctx) {
    shot *s = ctx;
    loop_timer_remove(s->l, s->t);
    s->n_fired++;
}

static void again_at_once(void *ctx) {
    shot *s = ctx;
    if (++s->n_fired < 1000)
        loop_timer_add(s->l, 0, false, again_at_once, s);
}

static void a_timer_that_rearms_at_once_starves_nobody(void **state) {
    (void)state;
    loop *l = loop_new();
    shot s = {.l = l}, own = {.l = l};
    end x = {.l = l};
    assert_int_equal(pipe(x.fds), 0);
    x.io = loop_io_add(l, x.fds[0], EPOLLIN, read_one, &x);
    assert_int_equal(write(x.fds[1], "x", 1), 1);
    own.t = loop_timer_add(l, 0, false, remove_own_one_shot, &own);
    loop_timer_add(l, 0, false, again_at_once, &s);
    run_for(l, 200);
    assert_int_equal(s.n_fired, 1000);
    assert_int_equal(x.n_calls, 1);
    assert_int_equal(own.n_fired, 1);
    loop_free(l);
    close(x.fds[0]);
    close(x.fds[1]);
}

// ---- inbox

enum { N_POSTERS = 4, N_POSTS = 5000 };
typedef struct post {
    struct poster *from;
    int number;
} post;
typedef struct poster {
    loop *l;
    pthread_t thread;
    int next;
    int *n_total;
    post posts[N_POSTS];
} poster;

static void receive(void *ctx) {
    post *p = ctx;
    assert_true(loop_is_here(p->from->l));
    assert_int_equal(p->number, p->from->next);
    p->from->next++;
    if (++*p->from->n_total == N_POSTERS * N_POSTS)
        loop_stop(p->from->l);
}

static void *post_all(void *ctx) {
    poster *p = ctx;
    assert_false(loop_is_here(p->l));
    for (int i = 0; i < N_POSTS; i++) {
        p->posts[i] = (post){p, i};
        loop_post(p->l, receive, &p->posts[i]);
    }
    return NULL;
}

static void posts_of_any_thread_arrive_once_in_order(void **state) {
    (void)state;
    static poster posters[N_POSTERS];
    int total = 0;
    loop *l = loop_new();
    for (int i = 0; i < N_POSTERS; i++) {
        posters[i].l = l;
        posters[i].n_total = &total;
        pthread_create(&posters[i].thread, NULL, post_all, &posters[i]);
    }
    loop_run(l);
    for (int i = 0; i < N_POSTERS; i++)
        pthread_join(posters[i].thread, NULL);
    assert_int_equal(total, N_POSTERS * N_POSTS);
    loop_free(l);
}

static void post_stop(void *ctx) { loop_post(ctx, stop, ctx); }

static void a_post_from_a_callback_runs_and_a_stop_before_the_run_holds(void **state) {
    (void)state;
    loop *l = loop_new();
    loop_post(l, post_stop, l);
    loop_run(l);
    loop_stop(l);
    loop_run(l);
    loop_free(l);
}

static int tick(void *ctx) {
    shot *s = ctx;
    if (++s->n_fired == 5)
        loop_stop(s->l);
    return 10;
}

static int never_sleep(void *ctx) {
    (void)ctx;
    return 0;
}

static void *post_the_last(void *ctx) {
    loop_post(ctx, stop, ctx);
    return NULL;
}

// Sanitizers see a post that touches the loop after its letter was heard.
static void a_loop_may_be_freed_once_the_last_letter_is_heard(void **state) {
    (void)state;
    for (int i = 0; i < 1000; i++) {
        pthread_t thread;
        loop *l = loop_new();
        loop_set_tick(l, never_sleep, NULL);
        pthread_create(&thread, NULL, post_the_last, l);
        loop_run(l);
        loop_free(l);
        pthread_join(thread, NULL);
    }
}

static void the_tick_runs_each_turn_and_bounds_the_sleep(void **state) {
    (void)state;
    loop *l = loop_new();
    shot s = {.l = l};
    int64_t before = clock_mono_ms();
    loop_set_tick(l, tick, &s);
    loop_run(l);
    assert_in_range(clock_mono_ms() - before, 30, 2000);
    assert_in_range(loop_now_ms(l), clock_mono_ms() - 1000, clock_mono_ms());
    loop_free(l);
}

// ---- pool

typedef struct job {
    pthread_mutex_t gate;
    _Atomic int n_done, n_signals_open;
} job;

static void do_job(void *ctx) {
    job *j = ctx;
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (!sigismember(&blocked, SIGTERM))
        atomic_fetch_add(&j->n_signals_open, 1);
    pthread_mutex_lock(&j->gate);
    pthread_mutex_unlock(&j->gate);
    atomic_fetch_add(&j->n_done, 1);
}

static void a_pool_refuses_beyond_its_limit_and_finishes_what_it_took(void **state) {
    (void)state;
    job j = {.gate = PTHREAD_MUTEX_INITIALIZER};
    pool *p = pool_new("a pool with a long name", 2);
    pool_set_limit(p, 3);
    pthread_mutex_lock(&j.gate);
    int taken = 0;
    for (int64_t until = clock_mono_ms() + 5000; taken < 5 && clock_mono_ms() < until;)
        if (pool_submit(p, do_job, &j) == 0)
            taken++;
        else
            clock_sleep_ms(1); // the threads have not taken theirs yet
    assert_int_equal(taken, 5);
    assert_int_equal(pool_waiting(p), 3);
    assert_int_equal(pool_submit(p, do_job, &j), -1);
    pthread_mutex_unlock(&j.gate);
    pool_free(p);
    assert_int_equal(j.n_done, 5);
    assert_int_equal(j.n_signals_open, 0);
    pool_free(NULL);
}

// ---- the end of a turn

typedef struct endings {
    loop *l;
    char said[8]; // in order: p post, t tick, d deferred
    int n;
} endings;

static void say(endings *x, char what) {
    if (x->n < (int)sizeof x->said - 1)
        x->said[x->n++] = what;
}

static void note_deferred(void *ctx) {
    endings *x = ctx;
    say(x, 'd');
    loop_stop(x->l);
}

static void note_post(void *ctx) {
    endings *x = ctx;
    say(x, 'p');
    loop_defer(x->l, note_deferred, x);
}

static int note_tick(void *ctx) {
    say(ctx, 't');
    return -1;
}

static void post_from_here(void *ctx) {
    endings *x = ctx;
    loop_post(x->l, note_post, x); // wakes nobody, and is not slept upon
}

static void what_is_deferred_runs_after_the_tick_of_the_same_turn(void **state) {
    (void)state;
    endings x = {.l = loop_new()};
    loop_defer(x.l, post_from_here, &x); // before the loop runs: at the end of its first turn
    loop_set_tick(x.l, note_tick, &x);
    loop_run(x.l);
    assert_string_equal(x.said, "tptd");
    loop_free(x.l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_descriptor_is_told_as_long_as_it_is_ready),
        cmocka_unit_test(a_callback_may_remove_itself_and_others_of_the_same_turn),
        cmocka_unit_test(thousands_of_descriptors_are_served),
        cmocka_unit_test(thousands_of_timers_fire_once_in_order_and_never_early),
        cmocka_unit_test(a_repeating_timer_may_remove_itself),
        cmocka_unit_test(a_timer_that_rearms_at_once_starves_nobody),
        cmocka_unit_test(posts_of_any_thread_arrive_once_in_order),
        cmocka_unit_test(a_post_from_a_callback_runs_and_a_stop_before_the_run_holds),
        cmocka_unit_test(a_loop_may_be_freed_once_the_last_letter_is_heard),
        cmocka_unit_test(the_tick_runs_each_turn_and_bounds_the_sleep),
        cmocka_unit_test(what_is_deferred_runs_after_the_tick_of_the_same_turn),
        cmocka_unit_test(a_pool_refuses_beyond_its_limit_and_finishes_what_it_took),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

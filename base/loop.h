// One epoll loop: descriptors, timers and an inbox other threads may post to. Everything but
// loop_post and loop_stop is called on the loop's own thread.
#ifndef BASE_LOOP_H
#define BASE_LOOP_H
#include <stdbool.h>
#include <stdint.h>

typedef struct loop loop;
typedef struct loop_timer loop_timer;
typedef struct loop_io loop_io;
typedef void loop_io_fn(void *ctx, uint32_t events); // EPOLL* bits
typedef void loop_fn(void *ctx);

loop *loop_new(void);
void loop_free(loop *l); // closes no descriptor of others
// events: EPOLL* bits wanted. NULL: the kernel refuses (errno says why). The handle dies with
// loop_io_remove, which is allowed inside any callback.
loop_io *loop_io_add(loop *l, int fd, uint32_t events, loop_io_fn *fn, void *ctx);
void loop_io_set(loop *l, loop_io *io, uint32_t events);
void loop_io_remove(loop *l, loop_io *io);
// Fires once after ms (at least), or every ms when repeat. The handle of a one-shot timer dies when
// it fires.
loop_timer *loop_timer_add(loop *l, int ms, bool repeat, loop_fn *fn, void *ctx);
void loop_timer_remove(loop *l, loop_timer *t);
// Entered by any thread; run on the loop's thread in order of posting. Never fails, never blocks
// for long.
void loop_post(loop *l, loop_fn *fn, void *ctx);
// Runs once at the end of this turn, after the tick, or in loop_free; from the loop's thread only.
void loop_defer(loop *l, loop_fn *fn, void *ctx);
// Called once a turn, after all events of that turn (libmicrohttpd's MHD_run lives here); returns
// the most ms to sleep, -1: any.
void loop_set_tick(loop *l, int (*tick)(void *ctx), void *ctx);
void loop_run(loop *l);             // until loop_stop
void loop_stop(loop *l);            // any thread
int64_t loop_now_ms(const loop *l); // monotonic, read once a turn
bool loop_is_here(const loop *l);   // is this the loop's thread? for assertions

#endif

// Groups frames by gateway, encodes and appends them to the gateways' reply streams. Encoded
// messages wait in order until acknowledged.
#include "worker/outbox.h"
#include <stdlib.h>
#include <string.h>
#include "router/queue.h"

typedef struct parcel { // the frames of one step for one gateway
    struct parcel *next;
    uint64_t gateway;
    reply_frame *frames;
    int n, cap;
} parcel;

typedef struct letter { // encoded, not acknowledged yet
    struct letter *next;
    uint64_t gateway;
    buf bytes;
} letter;

struct outbox {
    uint64_t worker;
    arena a;
    parcel *parcels;
    letter *first, **last;
};

outbox *outbox_new(uint64_t worker) {
    outbox *o = calloc(1, sizeof *o);
    if (!o)
        fatal("no memory for the outbox");
    o->worker = worker;
    arena_init(&o->a);
    o->last = &o->first;
    return o;
}

static void letter_pop(outbox *o) {
    letter *l = o->first;
    o->first = l->next;
    if (!o->first)
        o->last = &o->first;
    buf_release(&l->bytes);
    free(l);
}

void outbox_drop(outbox *o) {
    while (o->first)
        letter_pop(o);
    o->parcels = NULL;
    arena_clear(&o->a);
}

void outbox_free(outbox *o) {
    outbox_drop(o);
    arena_release(&o->a);
    free(o);
}

arena *outbox_arena(outbox *o) { return &o->a; }

static parcel *parcel_for(outbox *o, uint64_t gateway) {
    for (parcel *p = o->parcels; p; p = p->next)
        if (p->gateway == gateway)
            return p;
    parcel *p = arena_alloc(&o->a, sizeof *p);
    p->gateway = gateway;
    p->next = o->parcels;
    return o->parcels = p;
}

reply_frame *outbox_add(outbox *o, uint64_t gateway, const char *id, int attempt, uint64_t run,
                        int choice) {
    parcel *p = parcel_for(o, gateway);
    if (p->n == p->cap) {
        int cap = p->cap ? 2 * p->cap : 16;
        reply_frame *frames = arena_alloc(&o->a, (size_t)cap * sizeof *frames);
        if (p->n)
            memcpy(frames, p->frames, (size_t)p->n * sizeof *frames);
        p->frames = frames;
        p->cap = cap;
    }
    reply_frame *f = &p->frames[p->n++];
    *f = (reply_frame){.choice = choice, .attempt = attempt, .run = run};
    memcpy(f->id, id, sizeof f->id);
    return f;
}

static void encode_all(outbox *o) {
    for (parcel *p = o->parcels; p; p = p->next) {
        letter *l = calloc(1, sizeof *l);
        if (!l)
            fatal("no memory for a reply");
        l->gateway = p->gateway;
        reply_encode(&(reply){.worker = o->worker, .frames = p->frames, .n_frames = p->n},
                     &l->bytes);
        *o->last = l;
        o->last = &l->next;
    }
    o->parcels = NULL;
    arena_clear(&o->a);
}

int outbox_send(outbox *o, redis *r, void (*gone)(void *ctx, uint64_t gateway), void *ctx, err *e) {
    encode_all(o);
    while (o->first) {
        int alive;
        if (queue_send_reply(r, o->first->gateway, o->first->bytes.data, o->first->bytes.len,
                             &alive, e))
            return -1;
        if (!alive)
            gone(ctx, o->first->gateway);
        letter_pop(o);
    }
    return 0;
}

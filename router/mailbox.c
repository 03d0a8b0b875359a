// Letters to a router. Owns a count of its holders; letters enter on any thread (mailbox_post) and
// leave on the loop's thread (open_letter), in order. The mutex guards loop and owner, so that
// nothing is posted to a loop whose router has closed.
#include "router/mailbox.h"
#include "base/err.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct mailbox {
    pthread_mutex_t mutex;
    loop *l; // NULL once closed
    router *owner;
    atomic_int refs; // holders and letters under way
};

typedef struct letter {
    mailbox *to;
    mailbox_fn *fn;
    void *arg;
} letter;

mailbox *mailbox_new(loop *l, router *owner) {
    mailbox *m = calloc(1, sizeof *m);
    if (!m)
        fatal("out of memory for a mailbox");
    pthread_mutex_init(&m->mutex, NULL);
    m->l = l;
    m->owner = owner;
    atomic_store(&m->refs, 1);
    return m;
}

mailbox *mailbox_ref(mailbox *m) {
    atomic_fetch_add(&m->refs, 1);
    return m;
}

void mailbox_unref(mailbox *m) {
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

static void open_letter(void *ctx) {
    letter *x = ctx;
    x->fn(x->to->owner, x->arg); // owner changes on this thread only
    mailbox_unref(x->to);
    free(x);
}

void mailbox_post(mailbox *m, mailbox_fn *fn, void *arg) {
    letter *x = malloc(sizeof *x);
    if (!x)
        fatal("out of memory for a letter");
    *x = (letter){m, fn, arg};
    pthread_mutex_lock(&m->mutex);
    bool is_open = m->l != NULL;
    if (is_open) {
        mailbox_ref(m);
        loop_post(m->l, open_letter, x);
    }
    pthread_mutex_unlock(&m->mutex);
    if (!is_open) {
        fn(NULL, arg);
        free(x);
    }
}

void mailbox_close(mailbox *m) {
    if (!m)
        return;
    pthread_mutex_lock(&m->mutex);
    m->l = NULL;
    m->owner = NULL;
    pthread_mutex_unlock(&m->mutex);
    mailbox_unref(m);
}

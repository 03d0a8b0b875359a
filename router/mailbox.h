// What other threads (journal, recorder, sweeper) tell a router: letters that are read on its loop.
// A router that closes leaves its mailbox behind; letters to it are then opened at once by their
// sender with a NULL router, so that what they carry is freed. Internal to router/.
#ifndef ROUTER_MAILBOX_H
#define ROUTER_MAILBOX_H
#include "base/loop.h"
#include "router/request.h"

typedef struct mailbox mailbox;
typedef void mailbox_fn(router *r, void *arg); // r NULL: the router is closed, free arg

mailbox *mailbox_new(loop *l, router *owner);
void mailbox_post(mailbox *m, mailbox_fn *fn, void *arg); // any thread
mailbox *mailbox_ref(mailbox *m);
void mailbox_unref(mailbox *m); // any thread; the last one frees
void mailbox_close(mailbox *m); // the loop's thread: no letter reaches the router any more; unrefs

#endif

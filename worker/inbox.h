// What other threads tell the step thread: cancels, lost gateways, loaded adapters, bells, signals.
// Entered by the listener, the keeper and the loader of adapters; left by the step thread.
#ifndef WORKER_INBOX_H
#define WORKER_INBOX_H
#include <stdbool.h>
#include <stdint.h>
#include "base/id.h"

typedef struct inbox inbox;

typedef enum note_kind { NOTE_CANCEL, NOTE_GATEWAY_GONE, NOTE_ADAPTERS } note_kind;
typedef struct note {
    note_kind kind;
    char id[ID_UUID_TEXT]; // CANCEL
    int attempt;
    uint64_t run;
    uint64_t gateway; // GATEWAY_GONE
} note;

inbox *inbox_new(void);
void inbox_free(inbox *b);
void inbox_put(inbox *b, const note *n);
void inbox_ring(inbox *b);            // something waits in the queue
void inbox_stop(inbox *b);            // each call counts: 1 = drain, 2 = now
bool inbox_take(inbox *b, note *out); // false: empty
bool inbox_rang(inbox *b);            // and forgets it
int inbox_stops(inbox *b);
void inbox_wait(inbox *b, int ms); // until there is anything, ms at most

#endif

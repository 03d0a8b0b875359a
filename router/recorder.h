// The recorder: one thread of the process that brings rows to Postgres, in batches of up to 1,000
// or 20 ms, and after the COMMIT drops their records in Redis and writes C into the journal.
// Internal to router/.
#ifndef ROUTER_RECORDER_H
#define ROUTER_RECORDER_H
#include <stdbool.h>
#include "base/config.h"
#include "base/err.h"
#include "router/journal.h"
#include "router/mailbox.h"
#include "router/usage.h"

typedef struct recorder recorder;

typedef struct recorder_entry { // heap; owned by the recorder from push until it is told
    struct recorder_entry *next;
    usage_row row;
    int64_t pushed_ms;    // the recorder's, monotonic
    uint64_t segment;     // of the journal; 0: the id is not in it (a sweep)
    bool is_settled;      // false: settle first and take over what that answers
    bool is_refused;      // the recorder's: Postgres will never take it
    mailbox *owner;       // told with mailbox_fn `recorded` and the entry as arg; NULL: freed
    mailbox_fn *recorded; // frees the entry
} recorder_entry;

recorder *recorder_open(const config *c, journal *j);
void recorder_push(recorder *r, recorder_entry *x); // any thread; takes x
int64_t recorder_waiting(const recorder *r);        // rows not committed yet; any thread
int64_t recorder_oldest_ms(const recorder *r);      // how long the oldest of them waits; any thread
bool recorder_is_behind(const recorder *r);         // the last try to reach Postgres failed
// Waits up to ms until everything is committed, then ends the thread; what is left stays in the
// journal.
void recorder_close(recorder *r, int ms);

#endif

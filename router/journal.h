// The gateway's journal on its own disk: what it accepted (A), how it ended (F), that its row is
// committed (C). Lines are appended by any thread and made durable by one thread: those that
// somebody waits for at once (many together under load), the others within 5 ms. Segments go, the
// oldest first, when all ids accepted in them have their C. Internal to router/.
#ifndef ROUTER_JOURNAL_H
#define ROUTER_JOURNAL_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "router/mailbox.h"
#include "router/usage.h"

typedef struct journal journal;

typedef struct journal_mark { // of a line A
    uint64_t segment;         // whose life the id prolongs until journal_commit
    uint64_t end;             // durable once journal_durable() has reached it
} journal_mark;

// An id without C, found when the journal was opened.
typedef struct journal_open_id {
    usage_row row; // id and meta; the rest only when is_finished
    bool is_finished;
    uint64_t segment;
} journal_open_id;

// dir is made when it is not there; a second process on the same directory is ERR_IO. limit_bytes
// bounds all segments together. found(ctx, id) is called for each id without C, in no order.
int journal_open(const char *dir, int64_t limit_bytes,
                 void (*found)(void *ctx, const journal_open_id *id), void *ctx, journal **out,
                 err *e);
void journal_close(journal *j); // makes durable what was appended

// ERR_DEPENDENCY: the journal is full, or the disk.
int journal_accept(journal *j, const char *id, const usage_meta *m, journal_mark *mark, err *e);
int journal_finish(journal *j, const usage_row *r, err *e);

typedef struct journal_closed { // an id whose row is committed, and where its A stands
    const char *id;
    uint64_t segment;
} journal_closed;
void journal_commit(journal *j, const journal_closed *closed, int n);

// fn is posted to the mailbox once journal_durable has reached `end`, or the disk has failed; later
// wishes of the same watch are joined to the next fdatasync.
typedef struct journal_watch journal_watch;
journal_watch *journal_watch_new(journal *j, mailbox *m, mailbox_fn *fn);
void journal_want(journal *j, journal_watch *w, uint64_t end);
void journal_watch_free(journal *j, journal_watch *w);
uint64_t journal_durable(const journal *j);
bool journal_has_failed(const journal *j); // fdatasync failed: nothing more becomes durable
// Why nothing can be accepted: "the journal is full", ... or NULL. Any thread.
const char *journal_trouble(const journal *j);
int64_t journal_bytes(const journal *j);

// One line, for replay and fuzzing. kind 'A', 'F' or 'C'; text is what follows the id (borrowed).
// ERR_FORMAT when the checksum or the shape is wrong. n excludes the line feed.
int journal_parse_line(const char *line, size_t n, char *kind, char id[ID_UUID_TEXT],
                       const char **text, size_t *n_text, err *e);

#endif

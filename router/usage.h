// The ledger's row: what is known of a request when it is accepted (meta, kept by journal and Redis
// record so that a stranger can write the row), what is known at its end, and the one statement
// that inserts a batch of rows and adds them to quota_used. Internal to router/.
#ifndef ROUTER_USAGE_H
#define ROUTER_USAGE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"
#include "base/pg.h"
#include "base/redis.h"

#define USAGE_SCOPES 4
#define USAGE_BATCH 1000 // rows of one transaction

typedef struct usage_meta {
    char tenant[ID_UUID_TEXT], user[ID_UUID_TEXT], key[ID_UUID_TEXT];
    int64_t accepted_ms; // unix time
    char endpoint[32], task[32];
    char model[64], adapter[64], tier[16];
    int64_t price_in, price_cached, price_out; // nano-units per token
    char idem[65];                             // hash of the Idempotency-Key, "" = none
    char route[96];                            // why this model, "" = not known
    char scopes[USAGE_SCOPES + 1]; // letters of the scopes that were held: t u k m, in that order
} usage_meta;

typedef struct usage_row {
    char id[ID_UUID_TEXT];
    usage_meta meta;
    int64_t at_ms; // of the settlement (Redis' clock)
    char outcome[16];
    int attempts, prompt, cached, completion; // tokens; attempts 0: not known
    int64_t money;                            // nano-units
    int64_t queue_ms, total_ms, engine_us;
    int64_t first_token_ms; // -1: none was made
    // the column trace: what only `tiergate why` and `tiergate usage verify` need
    char gateway[17], worker[17]; // incarnations, the last attempt's worker; "" = not known
    char limited_by[8];           // kind of the limit that ended it
    int steps;                    // of the engine that brought tokens
    int queue_steps;              // that ended while it waited
    int made;                     // tokens that came from workers, handed or not
    int granted;                  // tokens per choice, with all extensions
    int64_t held_tokens, held_money;
} usage_row;

// One line of JSON each; the row's without its meta. Reading: ERR_FORMAT names the field; what a
// later version added may be missing.
void usage_meta_put(const usage_meta *m, buf *out);
int usage_meta_parse(const char *p, size_t n, usage_meta *out, err *e);
void usage_row_put(const usage_row *r, buf *out);
int usage_row_parse(const char *p, size_t n, usage_row *out, err *e); // id and meta are left alone

int64_t usage_money(const usage_meta *m, int prompt, int cached, int completion);
// Takes over what the first settler decided.
struct quota_settlement;
void usage_row_settle(usage_row *r, const struct quota_settlement *s);
// "t", "u:<user>", "k:<key>" or "m:<model>" for a letter of meta.scopes.
void usage_scope_name(const usage_meta *m, char letter, char *out, size_t n);

// Inserts n <= USAGE_BATCH rows (pointers) and their sums in one transaction; rows that are there
// already change nothing. *fresh counts the new ones.
int usage_insert(pg *p, const usage_row *const *rows, int n, int *fresh, err *e);
// Gives n <= USAGE_BATCH rows the tokens, money and outcome with which they stand in the ledger;
// one that does not stand there stays as it is. *found: how many do.
int usage_read_back(pg *p, usage_row *const *rows, int n, int *found, err *e);

#endif

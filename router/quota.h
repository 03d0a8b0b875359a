// Holds: the commands of the library tiergate3 (router/quota.lua) and their answers. Whoever owns a
// connection sends them. Limits travel with each call and only for scopes that have one; which
// scopes those are stands in usage_meta.scopes, so that extend and settle name the same ones.
// Internal to router/.
#ifndef ROUTER_QUOTA_H
#define ROUTER_QUOTA_H
#include <stdbool.h>
#include <stdint.h>
#include "base/redis.h"
#include "router/command.h"
#include "router/rate.h"
#include "router/usage.h"

// Order as in router/quota.lua; -1: no limit.
typedef enum quota_kind {
    QUOTA_RPM,
    QUOTA_TPM,
    QUOTA_CONCURRENT,
    QUOTA_TPD,
    QUOTA_TPO,
    QUOTA_MPO,
    N_QUOTA_KINDS
} quota_kind;
typedef struct quota_limits {
    int64_t limit[USAGE_SCOPES][N_QUOTA_KINDS]; // a row per letter of usage_meta.scopes
} quota_limits;

typedef struct quota_demand {
    int prompt;
    int want; // tokens per choice
    int need; // the fewest that will do
    int n_choices;
} quota_demand;

typedef enum quota_verdict {
    QUOTA_OK,
    QUOTA_NO,      // a limit: kind, retry_ms
    QUOTA_MISS,    // a scope must be loaded first: scope, nonce, now_s
    QUOTA_OPEN,    // the request with this Idempotency-Key runs
    QUOTA_OTHER,   // it had another body
    QUOTA_DONE,    // it is finished: answer
    QUOTA_POISON,  // this body killed its workers: retry_ms
    QUOTA_GONE,    // no open record
    QUOTA_NO_CALL, // the library is not loaded
    QUOTA_LOST,    // no answer, or Redis refuses
} quota_verdict;

typedef struct quota_answer {
    quota_verdict verdict;
    int granted;      // per choice
    int scope;        // index into usage_meta.scopes
    char kind[8];     // NO: of the limit; OK: of the one that shrank the grant, "" = none
    int64_t retry_ms; // -1: not soon
    int64_t limit, used, demand; // NO: used includes what is held
    char nonce[40];
    int64_t now_s;
    rates rates;        // after this hold (OK), or as it is (NO)
    const char *answer; // DONE; borrowed from the reply
    size_t n_answer;
} quota_answer;

typedef struct quota_settlement { // what the first settler decided
    int64_t at_ms;
    int prompt, completion;
    int64_t money;
    char outcome[16];
} quota_settlement;

// "tokens per minute" for "tpm", ...; the kind itself when it is unknown. Static, or kind.
const char *quota_kind_words(const char *kind);

// body_hash: of the request's body, "" = not known.
void quota_hold_command(const usage_meta *m, const char *id, uint64_t gateway,
                        const char *body_hash, const quota_demand *d, const quota_limits *l,
                        command *out);
void quota_extend_command(const usage_meta *m, const char *id, int from, int slice, int n_choices,
                          const quota_limits *l, command *out);
void quota_read_answer(const redis_value *v, quota_answer *out); // of hold and extend

// s NULL: with what the record knows. drop: the row is committed, the record goes.
void quota_settle_command(const usage_meta *m, const char *id, const quota_settlement *s,
                          const char *outcome, bool drop, command *out);
// Undoes a hold whose request was never accepted: no row. Its answer: quota_is_released.
void quota_release_command(const usage_meta *m, const char *id, command *out);
// The same as settle by the owner of a whole answer, whose Idempotency-Key stays taken until
// quota_answer_command.
void quota_settle_answered_command(const usage_meta *m, const char *id, const quota_settlement *s,
                                   const char *outcome, command *out);
// What later requests with this Idempotency-Key get; n 0: nothing, the key is free. p is borrowed
// until it is sent.
void quota_answer_command(const char *tenant, const char *idem, const char *id, const void *p,
                          size_t n, command *out);
// From now on hold refuses this body of the tenant, for ms.
void quota_poison_command(const char *tenant, const char *body_hash, int64_t ms, command *out);
quota_verdict quota_read_settlement(const redis_value *v, quota_settlement *out); // OK GONE ...

typedef struct quota_sent {
    const char *id;
    int sent;
    bool prefilled;
} quota_sent;
// Also says that the request was accepted: the first one goes before its first enqueue.
void quota_progress_command(const char *tenant, const quota_sent *sent, int n, command *out);

typedef struct quota_counters { // of one scope, from Postgres
    int64_t minute, minute_requests, minute_tokens, day, day_tokens, month, month_tokens,
        month_money;
} quota_counters;
void quota_load_command(const usage_meta *m, int scope, const char *nonce, const quota_counters *c,
                        command *out);
// Reads what the ledger knows of a scope, windows cut at now_s (the second that MISS named).
int quota_read_ledger(pg *p, const usage_meta *m, int scope, int64_t now_s, quota_counters *out,
                      err *e);

// A record in Redis, as far as a stranger needs it.
typedef struct quota_record {
    uint64_t gateway;
    bool is_open;     // else settled, with the values below
    bool is_accepted; // false: held only, it leaves no row
    int prompt, granted, sent;
    bool prefilled;
    int64_t held_tokens, held_money;
    int64_t held_ms; // since when (Redis' clock)
    quota_settlement settled;
    usage_meta meta;
} quota_record;
int quota_read_record(const char *p, size_t n, quota_record *out, err *e);

#endif

// Holds: the commands of the library tiergate1 (router/quota.lua) and their answers. Whoever owns a
// connection sends them. Limits travel with each call and only for scopes that have one; which
// scopes those are stands in usage_meta.scopes, so that extend and settle name the same ones.
// Internal to router/.
#ifndef ROUTER_QUOTA_H
#define ROUTER_QUOTA_H
#include <stdbool.h>
#include <stdint.h>
#include "base/redis.h"
#include "router/command.h"
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
    QUOTA_IDEM,    // another request with this Idempotency-Key: value
    QUOTA_GONE,    // no open record
    QUOTA_NO_CALL, // the library is not loaded
    QUOTA_LOST,    // no answer, or Redis refuses
} quota_verdict;

typedef struct quota_answer {
    quota_verdict verdict;
    int granted; // per choice
    int scope;   // index into usage_meta.scopes
    char kind[8];
    int64_t retry_ms; // -1: not soon
    char nonce[40];
    int64_t now_s;
    int64_t requests_left, tokens_left; // of the tightest limits; -1: none
} quota_answer;

typedef struct quota_settlement { // what the first settler decided
    int64_t at_ms;
    int prompt, completion;
    int64_t money;
    char outcome[16];
} quota_settlement;

void quota_hold_command(const usage_meta *m, const char *id, uint64_t gateway,
                        const quota_demand *d, const quota_limits *l, command *out);
void quota_extend_command(const usage_meta *m, const char *id, int from, int slice, int n_choices,
                          const quota_limits *l, command *out);
void quota_read_answer(const redis_value *v, quota_answer *out); // of hold and extend

// s NULL: with what the record knows. drop: the row is committed, the record goes.
void quota_settle_command(const usage_meta *m, const char *id, const quota_settlement *s,
                          const char *outcome, bool drop, command *out);
quota_verdict quota_read_settlement(const redis_value *v, quota_settlement *out); // OK GONE ...

typedef struct quota_sent {
    const char *id;
    int sent;
    bool prefilled;
} quota_sent;
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
    int prompt;
    bool prefilled;
    usage_meta meta;
} quota_record;
int quota_read_record(const char *p, size_t n, quota_record *out, err *e);

#endif

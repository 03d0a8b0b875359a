// The queue of a tier, shared by gateway and worker: names of keys, the Redis function library
// tiergate_queue2, and the calls of both sides. Mechanism and fields: router/queue.lua and
// docs/tour.md. A claim pops for good; whether the work arrived is the gateway's business.
#ifndef ROUTER_QUEUE_H
#define ROUTER_QUEUE_H
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/redis.h"
#include "router/job.h"
#include "router/command.h"
#include "router/reply.h"

typedef enum lane {
    LANE_COMPLETION,
    LANE_INTERACTIVE,
    LANE_BATCH,
    LANE_LAST,
    N_LANES
} lane; // letters c i b l
extern const char lane_letter[N_LANES];

// Loads the library unless it is there (same source). Also checks maxmemory-policy: anything but
// noeviction is ERR_INVALID.
int queue_prepare(redis *r, err *e);

// ---- worker side (blocking connection, one thread)
typedef struct queue_charge { // a tenant in a lane, as the worker knows it
    lane lane;
    const char *tenant;
    double amount; // service it received since the last claim: tokens made / weight
    int seats;     // places it has in the engine
} queue_charge;

typedef struct queue_room { // what a worker may take
    int max;                // entries: free places, and one to be at hand
    int more;           // beyond them, for the least served tenants that are entitled to a place of
                        // another one: one that keeps as many places as they then have
    int lanes[N_LANES]; // of max, per lane; of LANE_LAST at most one in all
} queue_room;

typedef struct queue_claimed {
    lane lane;
    char tenant[ID_UUID_TEXT];
    char id[ID_UUID_TEXT];
    int attempt;
    double weight;
    int64_t waited_ms;
} queue_claimed;

typedef struct queue_claims { // what a claim brought
    queue_claimed *entries;   // the caller's, room.max + room.more of them
    int n;
    int thrown;  // expired entries that were discarded: with no entry, ask again at once
    int tenants; // that wait now, per lane they wait in; 0 unless room.more was asked for
} queue_claims;

// Takes entries of tier and sends the charges; with no room at all, only these. Loads the library
// again when Redis has lost it. ERR_DEPENDENCY: the connection was lost (entries may have been
// taken: their gateway notices) or Redis refuses.
int queue_claim(redis *r, const char *tier, const queue_room *room, const queue_charge *charges,
                int n_charges, queue_claims *out, err *e);
// Entries that wait, per lane.
int queue_depth(redis *r, const char *tier, int64_t out[N_LANES], err *e);
// GETDEL of the sealed job; *found false when it is gone.
int queue_take_payload(redis *r, const char *tier, const char *id, int attempt, buf *out,
                       int *found, err *e);
// Appends an encoded reply to a gateway's reply stream (NOMKSTREAM). *alive 0: the gateway's lease
// is over; drop its work.
int queue_send_reply(redis *r, uint64_t gateway, const void *p, size_t n, int *alive, err *e);

// ---- gateway side: builds the command, whoever owns the connection sends it
typedef struct queue_place { // where an entry of a request waits
    const char *tier, *tenant, *id;
    lane lane;
    int attempt;
    int cost; // input tokens
    double weight;
    int64_t allow_ms; // from acceptance to the deadline
} queue_place;

// Answer: OK place waiting expected_ms | FULL tenant|tier waiting retry_ms (-1: nobody claims).
// old: the earlier attempt it replaces, or NULL.
void queue_enqueue_command(const queue_place *p, const queue_place *old, int64_t waited_ms,
                           int64_t limit_tenant, int64_t limit_tier, command *out);
void queue_cancel_command(const queue_place *p, command *out); // answer: entries that still waited
// n >= 1 places of one tenant's queue. Answer: per place, nil when it left the queue.
void queue_scores_command(const queue_place *const *places, int n, command *out);
bool queue_is_same(const queue_place *a, const queue_place *b); // one tenant's queue of a lane
// Tells a worker to stop a run: PUBLISH on its channel.
void queue_stop_command(uint64_t worker, const char *id, int attempt, uint64_t run, command *out);

// Tells another gateway, in its reply stream, that a request of its was superseded; nothing when
// its lease is over.
void queue_supersede_command(uint64_t gateway, const char *id, command *out);
#define QUEUE_SUPERSEDED "s" // the field; replies have "r"

// ---- names, for both
void queue_key_prefix(char *out, size_t n, const char *tier); // tg:{M}:
void queue_key_payload(char *out, size_t n, const char *tier, const char *id,
                       int attempt);                           // tg:{M}:p:<id>:<attempt>
void queue_key_bell(char *out, size_t n, const char *tier);    // tg:{M}:bell
void queue_key_cancel(char *out, size_t n, uint64_t worker);   // tg:c:<w>
void queue_key_gateway(char *out, size_t n, uint64_t gateway); // tg:g:{gw}

// A cancel message on tg:c:<w>: "id attempt run".
int queue_cancel_parse(const char *p, size_t n, char id[ID_UUID_TEXT], int *attempt, uint64_t *run);

#endif

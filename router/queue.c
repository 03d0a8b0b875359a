// The queue of a tier from both sides. Owns nothing: the blocking calls use the caller's connection
// on the caller's thread (worker, or start-up), the gateway's commands are only built here. The
// mechanism is in router/queue.lua.
#include "router/queue.h"
#include "router/library.h"
#include "router/wire.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPLY_STREAM_MOST "20000" // messages; a gateway that falls this far behind sees a gap

const char lane_letter[N_LANES] = {'c', 'i', 'b', 'l'};

// ---- names

void queue_key_prefix(char *out, size_t n, const char *tier) { snprintf(out, n, "tg:{%s}:", tier); }

void queue_key_payload(char *out, size_t n, const char *tier, const char *id, int attempt) {
    snprintf(out, n, "tg:{%s}:p:%s:%d", tier, id, attempt);
}

void queue_key_bell(char *out, size_t n, const char *tier) {
    snprintf(out, n, "tg:{%s}:bell", tier);
}

void queue_key_cancel(char *out, size_t n, uint64_t worker) {
    snprintf(out, n, "tg:c:%016" PRIx64, worker);
}

void queue_key_gateway(char *out, size_t n, uint64_t gateway) {
    snprintf(out, n, "tg:g:%016" PRIx64, gateway);
}

int queue_cancel_parse(const char *p, size_t n, char id[ID_UUID_TEXT], int *attempt,
                       uint64_t *run) {
    char text[96];
    int end = 0;
    if (n >= sizeof text || n < ID_UUID_TEXT || !wire_is_uuid(p, ID_UUID_TEXT - 1))
        return -1;
    memcpy(text, p, n);
    text[n] = '\0';
    if (sscanf(text + ID_UUID_TEXT - 1, " %9d %16" SCNx64 "%n", attempt, run, &end) != 2 ||
        text[ID_UUID_TEXT - 1 + end] || *attempt < 1)
        return -1;
    memcpy(id, text, ID_UUID_TEXT - 1);
    id[ID_UUID_TEXT - 1] = '\0';
    return 0;
}

// ---- preparing

static int refused(const redis_value *v, const char *what, err *e) {
    const char *why = redis_value_str(v, NULL);
    err_set(e, ERR_DEPENDENCY, NULL, "Redis cannot %s: %s", what, why ? why : "unexpected answer");
    if (e)
        e->retry_ms = 1000;
    return -1;
}

static int check_policy(redis *r, err *e) {
    static const char *const get[] = {"CONFIG", "GET", "maxmemory-policy"};
    redis_reply_box *box = NULL;
    if (redis_call(r, 3, get, NULL, &box, e))
        return -1;
    const redis_value *v = redis_reply_value(box), *policy = redis_value_at(v, 1);
    int rc = 0;
    if (redis_value_kind(v) == REDIS_ERROR)
        rc = refused(v, "tell its maxmemory-policy", e);
    else if (!redis_value_is(policy, "noeviction"))
        rc = err_set(e, ERR_INVALID, "redis.address",
                     "Redis must run with maxmemory-policy noeviction, it has %s",
                     redis_value_str(policy, NULL) ? redis_value_str(policy, NULL) : "none");
    redis_reply_free(box);
    return rc;
}

int queue_prepare(redis *r, err *e) {
    if (check_policy(r, e))
        return -1;
    return library_load(r, LIBRARY_QUEUE, e);
}

// ---- worker side

static void put_prefix(command *c, const char *tier) {
    command_join(c, 3, (const char *const[]){"tg:{", tier, "}:"});
}

static void put_charges(command *c, const queue_charge *charges, int n) {
    for (int i = 0; i < n; i++) {
        command_printf(c, "%c", lane_letter[charges[i].lane]);
        command_text(c, charges[i].tenant);
        command_printf(c, "%.3f", charges[i].amount);
        command_int(c, charges[i].seats);
    }
}

static bool is_any(const queue_room *room) { return room->max > 0 || room->more > 0; }

static void put_claim(command *c, const char *tier, const queue_room *room,
                      const queue_charge *charges, int n_charges) {
    const char *function = is_any(room) ? "tq2_claim" : "tq2_charge";
    command_words(c, 3, (const char *const[]){"FCALL", function, "1"});
    put_prefix(c, tier);
    if (is_any(room)) {
        command_int(c, room->max);
        command_int(c, room->more);
        for (int i = 0; i < N_LANES; i++)
            command_int(c, room->lanes[i] > 0 ? room->lanes[i] : 0);
    }
    put_charges(c, charges, n_charges);
}

static int read_lane(const redis_value *v, lane *out) {
    size_t n;
    const char *text = redis_value_str(v, &n);
    const char *at = text && n == 1 ? memchr(lane_letter, text[0], N_LANES) : NULL;
    if (!at)
        return -1;
    *out = (lane)(at - lane_letter);
    return 0;
}

static int read_uuid(const redis_value *v, char out[ID_UUID_TEXT]) {
    size_t n;
    const char *text = redis_value_str(v, &n);
    if (!text || !wire_is_uuid(text, n))
        return -1;
    memcpy(out, text, n + 1);
    return 0;
}

static int read_claimed(const redis_value *v, queue_claimed *out) {
    const char *weight = redis_value_str(redis_value_at(v, 4), NULL);
    if (read_lane(redis_value_at(v, 0), &out->lane) ||
        read_uuid(redis_value_at(v, 1), out->tenant) || read_uuid(redis_value_at(v, 2), out->id))
        return -1;
    out->attempt = (int)redis_value_int(redis_value_at(v, 3));
    out->weight = weight ? strtod(weight, NULL) : 0;
    out->waited_ms = redis_value_int(redis_value_at(v, 5));
    return out->attempt >= 1 && out->weight > 0 ? 0 : -1;
}

static void read_claim(const redis_value *v, int most, queue_claims *out) {
    out->thrown = (int)redis_value_int(redis_value_at(v, 0));
    out->tenants = (int)redis_value_int(redis_value_at(v, 1));
    for (size_t i = 2; i < redis_value_len(v) && out->n < most; i++) {
        if (!read_claimed(redis_value_at(v, i), &out->entries[out->n]))
            out->n++;
        else
            out->thrown++; // an entry nobody of ours made
    }
}

// The call, once more when the library had to be loaded first.
static int call_claim(redis *r, const char *tier, const queue_room *room,
                      const queue_charge *charges, int n_charges, redis_reply_box **box, err *e) {
    command c = {0};
    int rc = 0;
    for (int try = 0; try < 2; try++) {
        put_claim(&c, tier, room, charges, n_charges);
        rc = command_call(&c, r, box, e);
        if (rc || !library_is_missing(redis_reply_value(*box)) || try == 1)
            break;
        redis_reply_free(*box);
        *box = NULL;
        if ((rc = library_load(r, LIBRARY_QUEUE, e)))
            break;
    }
    command_release(&c);
    return rc;
}

int queue_claim(redis *r, const char *tier, const queue_room *room, const queue_charge *charges,
                int n_charges, queue_claims *out, err *e) {
    redis_reply_box *box = NULL;
    out->n = out->thrown = out->tenants = 0;
    if (call_claim(r, tier, room, charges, n_charges, &box, e))
        return -1;
    const redis_value *v = redis_reply_value(box);
    int rc = redis_value_kind(v) == REDIS_ERROR ? refused(v, "give out work", e) : 0;
    if (!rc && is_any(room))
        read_claim(v, room->max + room->more, out);
    redis_reply_free(box);
    return rc;
}

int queue_depth(redis *r, const char *tier, int64_t out[N_LANES], err *e) {
    command c = {0};
    redis_reply_box *box = NULL;
    command_words(&c, 3, (const char *const[]){"FCALL", "tq2_look", "1"});
    put_prefix(&c, tier);
    command_text(&c, "0");
    int rc = command_call(&c, r, &box, e);
    command_release(&c);
    if (rc)
        return -1;
    const redis_value *v = redis_reply_value(box);
    if (redis_value_kind(v) == REDIS_ERROR)
        rc = refused(v, "tell its queue's depth", e);
    for (size_t i = 0; !rc && i < N_LANES; i++) // in the order of lane
        out[i] = redis_value_int(redis_value_at(redis_value_at(v, i), 1));
    redis_reply_free(box);
    return rc;
}

int queue_take_payload(redis *r, const char *tier, const char *id, int attempt, buf *out,
                       int *found, err *e) {
    char key[160];
    redis_reply_box *box = NULL;
    queue_key_payload(key, sizeof key, tier, id, attempt);
    *found = 0;
    if (redis_call(r, 2, (const char *const[]){"GETDEL", key}, NULL, &box, e))
        return -1;
    const redis_value *v = redis_reply_value(box);
    size_t n;
    const char *bytes = redis_value_kind(v) == REDIS_STRING ? redis_value_str(v, &n) : NULL;
    int rc = !bytes && redis_value_kind(v) != REDIS_NIL ? refused(v, "hand over a job", e) : 0;
    if (bytes) {
        buf_put(out, bytes, n);
        *found = 1;
    }
    redis_reply_free(box);
    return rc;
}

int queue_send_reply(redis *r, uint64_t gateway, const void *p, size_t n, int *alive, err *e) {
    char key[64];
    redis_reply_box *box = NULL;
    queue_key_gateway(key, sizeof key, gateway);
    const char *argv[] = {"XADD", key, "NOMKSTREAM", "MAXLEN", "~", REPLY_STREAM_MOST, "*", "r", p};
    const size_t len[] = {4, strlen(key), 10, 6, 1, strlen(REPLY_STREAM_MOST), 1, 1, n};
    *alive = 1;
    if (redis_call(r, 9, argv, len, &box, e))
        return -1;
    const redis_value *v = redis_reply_value(box);
    int rc = redis_value_kind(v) == REDIS_ERROR ? refused(v, "take a reply", e) : 0;
    *alive = redis_value_kind(v) != REDIS_NIL;
    redis_reply_free(box);
    return rc;
}

// ---- gateway side

#define ENTRY_BYTES 160

static void put_entry(char out[ENTRY_BYTES], const queue_place *p) {
    snprintf(out, ENTRY_BYTES, "%s:%d:%d:%.3f:%" PRId64, p->id, p->attempt, p->cost,
             p->weight < 0.001 ? 0.001 : p->weight, p->allow_ms);
}

static void put_place(command *c, const queue_place *p) { // lane tenant entry
    char entry[ENTRY_BYTES];
    put_entry(entry, p);
    command_printf(c, "%c", lane_letter[p->lane]);
    command_text(c, p->tenant);
    command_text(c, entry);
}

static void put_call(command *c, const char *function, const queue_place *p) {
    char payload[160];
    queue_key_payload(payload, sizeof payload, p->tier, p->id, p->attempt);
    command_words(c, 3, (const char *const[]){"FCALL", function, "2"});
    put_prefix(c, p->tier);
    command_text(c, payload);
}

void queue_enqueue_command(const queue_place *p, const queue_place *old, int64_t waited_ms,
                           int64_t limit_tenant, int64_t limit_tier, command *out) {
    put_call(out, "tq2_enqueue", p);
    put_place(out, p);
    command_int(out, waited_ms);
    command_int(out, limit_tenant);
    command_int(out, limit_tier);
    if (old) {
        char entry[ENTRY_BYTES];
        put_entry(entry, old);
        command_printf(out, "%c", lane_letter[old->lane]);
        command_text(out, entry);
    }
}

void queue_cancel_command(const queue_place *p, command *out) {
    put_call(out, "tq2_cancel", p);
    put_place(out, p);
}

bool queue_is_same(const queue_place *a, const queue_place *b) {
    return a->lane == b->lane && !strcmp(a->tenant, b->tenant) && !strcmp(a->tier, b->tier);
}

void queue_scores_command(const queue_place *const *places, int n, command *out) {
    const queue_place *p = places[0];
    command_text(out, "ZMSCORE");
    command_printf(out, "tg:{%s}:q:%c:%s", p->tier, lane_letter[p->lane], p->tenant);
    for (int i = 0; i < n; i++) {
        char entry[ENTRY_BYTES];
        put_entry(entry, places[i]);
        command_text(out, entry);
    }
}

void queue_stop_command(uint64_t worker, const char *id, int attempt, uint64_t run, command *out) {
    char channel[64];
    queue_key_cancel(channel, sizeof channel, worker);
    command_text(out, "PUBLISH");
    command_text(out, channel);
    command_printf(out, "%s %d %016" PRIx64, id, attempt, run);
}

void queue_supersede_command(uint64_t gateway, const char *id, command *out) {
    char stream[64];
    queue_key_gateway(stream, sizeof stream, gateway);
    command_words(out, 8,
                  (const char *const[]){"XADD", stream, "NOMKSTREAM", "MAXLEN", "~",
                                        REPLY_STREAM_MOST, "*", QUEUE_SUPERSEDED});
    command_text(out, id);
}

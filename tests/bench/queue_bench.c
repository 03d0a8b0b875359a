// queue_bench: what a claim costs (wall clock, and Redis' own processor time) with few and with
// many waiting tenants, by a worker with room and by a full one, and with large prompts. A private
// Redis. A developer's tool: it asserts nothing. How long a visitor beside a flood waits:
// tests/bench/fairness.py.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "router/queue.h"
#include "tests/support/servers.h"

#define TIER "bench"
#define CLAIMS 2000
#define LARGE (512 * 1024)
#define N_LARGE 200
#define SLOTS 16

static redis *r;

static void check(int rc, const err *e) {
    if (rc) {
        fprintf(stderr, "queue_bench: %s\n", e->message);
        exit(1);
    }
}

// ---- calls

static redis_reply_box *call(int argc, const char *const *argv, const size_t *len) {
    redis_reply_box *box = NULL;
    err e = {0};
    check(redis_call(r, argc, argv, len, &box, &e), &e);
    return box;
}

static void call_words(int argc, const char *const *argv) {
    redis_reply_free(call(argc, argv, NULL));
}

// Processor seconds Redis has used.
static double redis_cpu(void) {
    redis_reply_box *box = call(2, (const char *const[]){"INFO", "cpu"}, NULL);
    const char *text = redis_value_str(redis_reply_value(box), NULL);
    const char *sys = strstr(text, "used_cpu_sys:"), *user = strstr(text, "used_cpu_user:");
    double s =
        strtod(sys + strlen("used_cpu_sys:"), NULL) + strtod(user + strlen("used_cpu_user:"), NULL);
    redis_reply_free(box);
    return s;
}

static void enqueue(int tenant, int id, int cost) {
    char tenant_text[ID_UUID_TEXT], id_text[ID_UUID_TEXT];
    command c = {0};
    redis_reply_box *box = NULL;
    err e = {0};
    snprintf(tenant_text, sizeof tenant_text, "01900000-0000-7000-9000-%012x", (unsigned)tenant);
    snprintf(id_text, sizeof id_text, "01900000-0000-7000-8000-%012x", (unsigned)id);
    queue_place p = {.tier = TIER,
                     .tenant = tenant_text,
                     .id = id_text,
                     .lane = LANE_INTERACTIVE,
                     .attempt = 1,
                     .cost = cost,
                     .weight = 1,
                     .allow_ms = 3600000};
    queue_enqueue_command(&p, NULL, 0, 1000000, 1000000, &c);
    check(command_call(&c, r, &box, &e), &e);
    redis_reply_free(box);
    command_release(&c);
}

static void claim_one(const queue_room *room, const queue_charge *charges, int n_charges,
                      queue_claimed *out) {
    queue_claims got = {.entries = out};
    err e = {0};
    check(queue_claim(r, TIER, room, charges, n_charges, &got, &e), &e);
    if (got.n != 1) {
        fprintf(stderr, "queue_bench: a claim of one brought %d\n", got.n);
        exit(1);
    }
}

static const queue_room one = {.max = 1, .lanes = {SLOTS, SLOTS, SLOTS, 1}};

static void start_afresh(void) {
    err e = {0};
    call_words(1, (const char *const[]){"FLUSHALL"});
    check(queue_prepare(r, &e), &e);
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// ---- the cost of a claim

// A worker with room takes anybody's; a full one, whose places a tenant of its own has, a
// visitor's.
static void measure_claims(int tenants, bool is_full) {
    static int64_t us[CLAIMS];
    static const queue_room full = {.more = 1, .lanes = {[LANE_LAST] = 1}};
    queue_claimed got;
    queue_charge charge = {LANE_INTERACTIVE, "01900000-0000-7000-9000-00000000ffff", 16, SLOTS};
    start_afresh();
    for (int i = 0; i < CLAIMS + tenants; i++) // so that nobody's last entry goes
        enqueue(i % tenants, i, 100);
    double cpu = redis_cpu();
    for (int i = 0; i < CLAIMS; i++) {
        int64_t begun = clock_mono_us();
        claim_one(is_full ? &full : &one, &charge, 1, &got);
        us[i] = clock_mono_us() - begun;
    }
    cpu = redis_cpu() - cpu;
    qsort(us, CLAIMS, sizeof *us, by_value);
    printf("claim of one by a %s worker, %4d tenants: p50 %3" PRId64 " us, p99 %4" PRId64
           " us, Redis processor %.0f us\n",
           is_full ? "full" : "free", tenants, us[CLAIMS / 2], us[CLAIMS * 99 / 100],
           cpu * 1e6 / CLAIMS);
}

static void put_large(const char *payload, int id) {
    char id_text[ID_UUID_TEXT], key[160];
    snprintf(id_text, sizeof id_text, "01900000-0000-7000-8000-%012x", (unsigned)id);
    queue_key_payload(key, sizeof key, TIER, id_text, 1);
    const size_t len[] = {3, strlen(key), LARGE};
    redis_reply_free(call(3, (const char *const[]){"SET", key, payload}, len));
}

static void measure_large(void) {
    char *payload = calloc(1, LARGE);
    queue_claimed got;
    int64_t in_us = 0, out_us = 0;
    start_afresh();
    double cpu = redis_cpu();
    for (int i = 0; i < N_LARGE && payload; i++) {
        buf b = {0};
        int found;
        err e = {0};
        int64_t begun = clock_mono_us();
        put_large(payload, i);
        enqueue(i % 10, i, 100000);
        in_us += clock_mono_us() - begun;
        begun = clock_mono_us();
        claim_one(&one, NULL, 0, &got);
        check(queue_take_payload(r, TIER, got.id, got.attempt, &b, &found, &e), &e);
        out_us += clock_mono_us() - begun;
        buf_release(&b);
    }
    cpu = redis_cpu() - cpu;
    printf("prompts of 512 KiB: enqueue %" PRId64 " us, claim %" PRId64
           " us, Redis processor %.0f us for both\n",
           in_us / N_LARGE, out_us / N_LARGE, cpu * 1e6 / N_LARGE);
    free(payload);
}

int main(void) {
    static const int tenants[] = {1, 100, 1000};
    err e = {0};
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    check(redis_connect(test_redis()->address, 5000, &r, &e), &e);
    for (int full = 0; full <= 1; full++)
        for (size_t i = 0; i < sizeof tenants / sizeof *tenants; i++)
            measure_claims(tenants[i], full);
    measure_large();
    redis_close(r);
    return 0;
}

// queue_bench [SECONDS]: what a claim costs (wall clock, and Redis' own processor time) with few
// and with many waiting tenants and with large prompts; and how long a tenant that asks once a
// second waits beside one that has 10,000 requests queued. A private Redis; no engine: the worker
// of the second part counts steps of a fixed time. A developer's tool: it asserts nothing.
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
#define FLOOD 10000
#define SLOTS 16
#define STEP_MS 20
#define MAX_SECONDS 600

static redis *r;
static const int all_lanes[N_LANES] = {SLOTS, SLOTS, SLOTS, 1};

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

static int claim(int max, const queue_charge *charges, int n_charges, queue_claimed *out) {
    int n, thrown;
    err e = {0};
    check(queue_claim(r, TIER, max, all_lanes, charges, n_charges, out, &n, &thrown, &e), &e);
    return n;
}

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

static void measure_claims(int tenants) {
    static int64_t us[CLAIMS];
    queue_claimed got;
    start_afresh();
    for (int i = 0; i < CLAIMS + tenants; i++) // so that nobody's last entry goes
        enqueue(i % tenants, i, 100);
    double cpu = redis_cpu();
    for (int i = 0; i < CLAIMS; i++) {
        int64_t begun = clock_mono_us();
        claim(1, NULL, 0, &got);
        us[i] = clock_mono_us() - begun;
    }
    cpu = redis_cpu() - cpu;
    qsort(us, CLAIMS, sizeof *us, by_value);
    printf("claim of one, %4d tenants: p50 %3" PRId64 " us, p99 %4" PRId64
           " us, Redis processor %.0f us\n",
           tenants, us[CLAIMS / 2], us[CLAIMS * 99 / 100], cpu * 1e6 / CLAIMS);
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
        claim(1, NULL, 0, &got);
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

// ---- a flood and a visitor

typedef struct bench_worker { // slots: tokens still to make, 0 = free
    int left[SLOTS];
    char tenant[SLOTS][ID_UUID_TEXT];
    bool has_next; // one more is claimed, so that it is at hand
    queue_claimed next;
    int64_t n_claimed;
} bench_worker;

typedef struct visitor { // of the tenant that asks once a second
    int64_t asked_ms[MAX_SECONDS], wait_ms[MAX_SECONDS];
    int n_asked, n_claimed;
    int n_passed_over; // claims of the other tenant while one of the visitor's waited
} visitor;

static void begin(bench_worker *w, int slot, const queue_claimed *c) {
    w->left[slot] = 8 + rand() % 17; // tokens of an answer
    memcpy(w->tenant[slot], c->tenant, ID_UUID_TEXT);
}

static void fill_slots(bench_worker *w) {
    for (int i = 0; i < SLOTS && w->has_next; i++)
        if (!w->left[i]) {
            begin(w, i, &w->next);
            w->has_next = false;
        }
}

static int room_of(const bench_worker *w) {
    int n = 1 - w->has_next;
    for (int i = 0; i < SLOTS; i++)
        n += w->left[i] == 0;
    return n;
}

static void note_claimed(visitor *v, const queue_claimed *c) {
    if (strcmp(c->tenant + 24, "000000000001") == 0)
        v->wait_ms[v->n_claimed++] = c->waited_ms;
    else
        v->n_passed_over += v->n_claimed < v->n_asked;
}

static void take(bench_worker *w, visitor *v, const queue_charge *charges, int n_charges) {
    queue_claimed got[SLOTS + 1];
    int n = claim(room_of(w), charges, n_charges, got);
    for (int i = 0; i < n; i++) {
        note_claimed(v, &got[i]);
        w->n_claimed++;
        w->next = got[i];
        w->has_next = true;
        fill_slots(w);
    }
}

static int step(bench_worker *w, queue_charge *charges) {
    int n = 0;
    clock_sleep_ms(STEP_MS);
    for (int i = 0; i < SLOTS; i++)
        if (w->left[i] > 0) {
            w->left[i]--;
            charges[n++] = (queue_charge){LANE_INTERACTIVE, w->tenant[i], 1};
        }
    fill_slots(w);
    return n;
}

static void measure_fairness(int seconds) {
    static bench_worker w;
    static visitor v;
    queue_charge charges[SLOTS];
    int n_charges = 0;
    start_afresh();
    for (int i = 0; i < FLOOD; i++)
        enqueue(0, i, 200);
    int64_t begun = clock_mono_ms(), next_ms = begun + 500;
    while (clock_mono_ms() - begun < seconds * 1000) {
        if (clock_mono_ms() >= next_ms && v.n_asked < MAX_SECONDS) {
            enqueue(1, FLOOD + v.n_asked++, 200);
            next_ms += 1000;
        }
        if (room_of(&w) > 0)
            take(&w, &v, charges, n_charges);
        n_charges = step(&w, charges);
    }
    qsort(v.wait_ms, (size_t)v.n_claimed, sizeof *v.wait_ms, by_value);
    printf("flood: %d requests of one tenant queued, %" PRId64
           " claimed in %d s (%d slots, steps of "
           "%d ms, 8 to 24 tokens)\n",
           FLOOD, w.n_claimed, seconds, SLOTS, STEP_MS);
    if (v.n_claimed)
        printf("visitor: asked %d times, claimed %d, passed over %d times; waited p50 %" PRId64
               " ms, most %" PRId64 " ms = %.1f steps (a slot must become free)\n",
               v.n_asked, v.n_claimed, v.n_passed_over, v.wait_ms[v.n_claimed / 2],
               v.wait_ms[v.n_claimed - 1], (double)v.wait_ms[v.n_claimed - 1] / STEP_MS);
}

int main(int argc, char **argv) {
    static const int tenants[] = {1, 100, 1000};
    int seconds = argc > 1 ? atoi(argv[1]) : 20;
    err e = {0};
    if (seconds < 2 || seconds > MAX_SECONDS) {
        fprintf(stderr, "usage: queue_bench [SECONDS, 2 to %d]\n", MAX_SECONDS);
        return 2;
    }
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    check(redis_connect(test_redis()->address, 5000, &r, &e), &e);
    for (size_t i = 0; i < sizeof tenants / sizeof *tenants; i++)
        measure_claims(tenants[i]);
    measure_large();
    measure_fairness(seconds);
    redis_close(r);
    return 0;
}

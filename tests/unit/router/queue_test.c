// The queue against a real Redis: who is served next, what is thrown away, what is refused. Both
// sides use the calls of router/queue.h; the gateway's commands are sent on a blocking connection.
#include "router/library.h"
#include "router/queue.h"
#include "base/clock.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define TIER "135m"
#define SLOTS 16

static redis *r;
static const int all_lanes[N_LANES] = {SLOTS, SLOTS, SLOTS, 1};

static char *id_of(char out[ID_UUID_TEXT], int n) {
    snprintf(out, ID_UUID_TEXT, "01900000-0000-7000-8000-%012x", (unsigned)n);
    return out;
}
static char *tenant_of(char out[ID_UUID_TEXT], int n) {
    snprintf(out, ID_UUID_TEXT, "01900000-0000-7000-9000-%012x", (unsigned)n);
    return out;
}

typedef struct entry {
    char tenant[ID_UUID_TEXT], id[ID_UUID_TEXT];
    queue_place place;
} entry;

static void make_entry(entry *x, int tenant, int id, lane l, int cost) {
    tenant_of(x->tenant, tenant);
    id_of(x->id, id);
    x->place = (queue_place){.tier = TIER,
                             .tenant = x->tenant,
                             .id = x->id,
                             .lane = l,
                             .attempt = 1,
                             .cost = cost,
                             .weight = 1,
                             .allow_ms = 60000};
}

static redis_reply_box *send_command(command *c) {
    redis_reply_box *box = NULL;
    err e = {0};
    assert_int_equal(command_call(c, r, &box, &e), 0);
    return box;
}

// The answer's first word; limits of a million where not said.
static char *enqueue_limited(const queue_place *p, const queue_place *old, int64_t waited,
                             int64_t per_tenant, int64_t per_tier, int64_t *retry_ms) {
    static char word[64];
    command c = {0};
    queue_enqueue_command(p, old, waited, per_tenant, per_tier, &c);
    redis_reply_box *box = send_command(&c);
    const redis_value *v = redis_reply_value(box);
    const char *s =
        redis_value_str(redis_value_kind(v) == REDIS_ARRAY ? redis_value_at(v, 0) : v, NULL);
    snprintf(word, sizeof word, "%s", s ? s : "?");
    if (retry_ms)
        *retry_ms = redis_value_int(redis_value_at(v, 3));
    redis_reply_free(box);
    command_release(&c);
    return word;
}

static void enqueue(const queue_place *p) {
    assert_string_equal(enqueue_limited(p, NULL, 0, 1000000, 1000000, NULL), "OK");
}

static void enqueue_new(int tenant, int id, lane l, int cost) {
    entry x;
    make_entry(&x, tenant, id, l, cost);
    enqueue(&x.place);
}

static int claim_with(int max, const int room[N_LANES], queue_claimed *out, int *thrown) {
    queue_claims got = {.entries = out};
    queue_room asked = {.max = max};
    err e = {0};
    memcpy(asked.lanes, room, sizeof asked.lanes);
    assert_int_equal(queue_claim(r, TIER, &asked, NULL, 0, &got, &e), 0);
    if (thrown)
        *thrown = got.thrown;
    return got.n;
}

static bool is_tenant(const queue_claimed *c, int tenant) {
    char text[ID_UUID_TEXT];
    return strcmp(c->tenant, tenant_of(text, tenant)) == 0;
}

static bool is_id(const queue_claimed *c, int id) {
    char text[ID_UUID_TEXT];
    return strcmp(c->id, id_of(text, id)) == 0;
}

static void start_afresh(void) {
    redis_reply_box *box = NULL;
    err e = {0};
    redis_call(r, 1, (const char *const[]){"FLUSHALL"}, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(queue_prepare(r, &e), 0);
}

static int setup(void **state) {
    (void)state;
    err e = {0};
    if (!test_has_redis())
        return 0;
    assert_int_equal(redis_connect(test_redis()->address, 2000, &r, &e), 0);
    start_afresh();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    redis_close(r);
    r = NULL;
    return 0;
}

// ---- order

static void a_tenant_is_served_in_order_of_acceptance(void **state) {
    (void)state;
    queue_claimed got[4];
    for (int i = 0; i < 3; i++) {
        enqueue_new(1, i, LANE_INTERACTIVE, 10);
        clock_sleep_ms(2);
    }
    assert_int_equal(claim_with(4, all_lanes, got, NULL), 3);
    for (int i = 0; i < 3; i++)
        assert_true(is_id(&got[i], i) && got[i].lane == LANE_INTERACTIVE && got[i].attempt == 1);
}

static void one_claim_serves_the_least_served_tenant_first(void **state) {
    (void)state;
    queue_claimed got[8];
    for (int i = 0; i < 20; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100); // the flood
    assert_int_equal(claim_with(4, all_lanes, got, NULL), 4);
    enqueue_new(2, 100, LANE_INTERACTIVE, 100);
    assert_int_equal(claim_with(2, all_lanes, got, NULL), 2);
    assert_true(is_tenant(&got[0], 2) || is_tenant(&got[1], 2)); // at most one ahead of it
}

static void two_that_always_wait_get_equal_service(void **state) {
    (void)state;
    queue_claimed got[1];
    double served[2] = {0, 0};
    for (int i = 0; i < 400; i++) {
        enqueue_new(1, i, LANE_INTERACTIVE, 300);
        enqueue_new(2, 1000 + i, LANE_INTERACTIVE, 100);
    }
    for (int i = 0; i < 300; i++) {
        assert_int_equal(claim_with(1, all_lanes, got, NULL), 1);
        served[is_tenant(&got[0], 2)] += is_tenant(&got[0], 2) ? 100 : 300;
    }
    assert_true(served[0] - served[1] <= 600 && served[1] - served[0] <= 600);
}

static void a_weight_of_two_earns_twice_the_service(void **state) {
    (void)state;
    queue_claimed got[1];
    int n[2] = {0, 0};
    for (int i = 0; i < 300; i++) {
        entry x;
        make_entry(&x, 1, i, LANE_INTERACTIVE, 100);
        x.place.weight = 2;
        enqueue(&x.place);
        enqueue_new(2, 1000 + i, LANE_INTERACTIVE, 100);
    }
    for (int i = 0; i < 300; i++) {
        claim_with(1, all_lanes, got, NULL);
        n[is_tenant(&got[0], 2)]++;
    }
    assert_in_range(n[0], 198, 202);
}

static void output_is_charged_with_the_next_claim(void **state) {
    (void)state;
    queue_claimed got[1];
    char tenant[ID_UUID_TEXT];
    int of_two = 0;
    queue_claims none = {0};
    err e = {0};
    for (int i = 0; i < 50; i++) {
        enqueue_new(1, i, LANE_INTERACTIVE, 10);
        enqueue_new(2, 1000 + i, LANE_INTERACTIVE, 10);
    }
    queue_charge charge = {LANE_INTERACTIVE, tenant_of(tenant, 1), 200, 0};
    assert_int_equal(queue_claim(r, TIER, &(queue_room){0}, &charge, 1, &none, &e), 0);
    for (int i = 0; i < 21; i++) {
        claim_with(1, all_lanes, got, NULL);
        of_two += is_tenant(&got[0], 2);
    }
    assert_in_range(of_two, 20, 21); // until tenant 2 has had 200 as well
}

static void a_tenant_that_was_away_earns_nothing_by_it(void **state) {
    (void)state;
    queue_claimed got[1];
    int of_two = 0;
    for (int i = 0; i < 200; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100);
    for (int i = 0; i < 100; i++)
        claim_with(1, all_lanes, got, NULL);
    for (int i = 0; i < 50; i++)
        enqueue_new(2, 1000 + i, LANE_INTERACTIVE, 100); // comes back after 100 claims
    for (int i = 0; i < 40; i++) {
        claim_with(1, all_lanes, got, NULL);
        of_two += is_tenant(&got[0], 2);
    }
    assert_in_range(of_two, 19, 21);
}

static void a_visitor_beside_a_flood_of_ten_thousand_is_passed_over_once_at_most(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    for (int i = 0; i < 10000; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100);
    for (int visit = 0; visit < 20; visit++) {
        assert_int_equal(claim_with(SLOTS, all_lanes, got, NULL), SLOTS);
        enqueue_new(2, 10000 + visit, LANE_INTERACTIVE, 200);
        assert_int_equal(claim_with(2, all_lanes, got, NULL), 2);
        assert_true(is_tenant(&got[0], 2) || is_tenant(&got[1], 2)); // equal counters: by name
    }
}

static void the_depth_counts_every_lane(void **state) {
    (void)state;
    queue_claimed got[2];
    int64_t n[N_LANES];
    err e = {0};
    for (int i = 0; i < 9; i++)
        enqueue_new(i % 3, i, (lane)(i % 2 ? LANE_BATCH : LANE_COMPLETION), 10);
    enqueue_new(1, 20, LANE_LAST, 10);
    assert_int_equal(queue_depth(r, TIER, n, &e), 0);
    assert_true(n[LANE_COMPLETION] == 5 && n[LANE_INTERACTIVE] == 0);
    assert_true(n[LANE_BATCH] == 4 && n[LANE_LAST] == 1);
    assert_int_equal(claim_with(2, all_lanes, got, NULL), 2);
    assert_int_equal(queue_depth(r, TIER, n, &e), 0);
    assert_true(n[0] + n[1] + n[2] + n[3] == 8);
}

static void lanes_go_by_priority_and_none_starves(void **state) {
    (void)state;
    queue_claimed got[1];
    int n[N_LANES] = {0};
    for (int i = 0; i < 400; i++) {
        enqueue_new(1, i, LANE_COMPLETION, 1);
        enqueue_new(1, 1000 + i, LANE_INTERACTIVE, 1);
        enqueue_new(1, 2000 + i, LANE_BATCH, 1);
    }
    for (int i = 0; i < 320; i++) {
        claim_with(1, all_lanes, got, NULL);
        n[got[0].lane]++;
    }
    assert_in_range(n[LANE_COMPLETION], 265, 285);
    assert_in_range(n[LANE_INTERACTIVE], 30, 40);
    assert_in_range(n[LANE_BATCH], 8, 11);
}

static void a_worker_gets_one_last_attempt_and_it_goes_first(void **state) {
    (void)state;
    queue_claimed got[4];
    enqueue_new(1, 1, LANE_COMPLETION, 1);
    enqueue_new(1, 2, LANE_LAST, 1);
    enqueue_new(1, 3, LANE_LAST, 1);
    assert_int_equal(claim_with(4, all_lanes, got, NULL), 2);
    assert_int_equal(got[0].lane, LANE_LAST);
    static const int busy[N_LANES] = {SLOTS, SLOTS, SLOTS, 0};
    assert_int_equal(claim_with(4, busy, got, NULL), 0);
    assert_int_equal(claim_with(4, all_lanes, got, NULL), 1);
}

static void room_of_a_lane_is_respected(void **state) {
    (void)state;
    queue_claimed got[8];
    for (int i = 0; i < 5; i++)
        enqueue_new(1, i, LANE_BATCH, 1);
    static const int little[N_LANES] = {4, 4, 2, 0};
    assert_int_equal(claim_with(8, little, got, NULL), 2);
}

// ---- a full worker

typedef struct held { // what a worker has, as its claims say
    queue_charge of[32];
    char tenants[32][ID_UUID_TEXT];
    int n;
} held;

static queue_charge *hold_seats(held *h, lane l, int tenant, int seats) {
    queue_charge *c = &h->of[h->n];
    *c = (queue_charge){.lane = l, .tenant = tenant_of(h->tenants[h->n], tenant), .seats = seats};
    h->n++;
    return c;
}

static queue_claims claim_full(int more, int last, const held *h, queue_claimed *out) {
    queue_claims got = {.entries = out};
    queue_room asked = {.more = more, .lanes = {[LANE_LAST] = last}};
    err e = {0};
    assert_int_equal(queue_claim(r, TIER, &asked, h->of, h->n, &got, &e), 0);
    return got;
}

static void a_full_worker_takes_a_visitor_and_nothing_of_the_flood(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    held h = {0}, shared = {0};
    for (int i = 0; i < 10000; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100);
    hold_seats(&h, LANE_INTERACTIVE, 1, SLOTS);
    assert_int_equal(claim_full(SLOTS - 1, 1, &h, got).n, 0);
    for (int visit = 0; visit < 20; visit++) {
        enqueue_new(0, 10000 + visit, LANE_INTERACTIVE, 200); // its name comes first
        enqueue_new(2, 20000 + visit, LANE_INTERACTIVE, 200); // and last
        h.of[0].amount = 300;                                 // what the flood got meanwhile
        queue_claims c = claim_full(SLOTS - 1, 1, &h, got);
        assert_int_equal(c.n, 2);
        assert_true(!is_tenant(&got[0], 1) && !is_tenant(&got[1], 1));
        assert_int_equal(c.tenants, 1);
    }
    enqueue_new(2, 30000, LANE_INTERACTIVE, 200); // has its share already
    hold_seats(&shared, LANE_INTERACTIVE, 1, SLOTS / 2);
    hold_seats(&shared, LANE_INTERACTIVE, 2, SLOTS / 2 - 1);
    assert_int_equal(claim_full(SLOTS - 2, 1, &shared, got).n, 0);
    shared.of[1].seats = SLOTS / 2 - 2;
    assert_int_equal(claim_full(SLOTS - 3, 1, &shared, got).n, 1);
}

static void visitors_that_come_at_once_get_a_place_each_while_there_are_any(void **state) {
    (void)state;
    queue_claimed got[2 * SLOTS];
    held h = {0}, full = {0};
    for (int i = 0; i < 100; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100);
    for (int i = 0; i < 60; i++)
        enqueue_new(2 + i % 20, 1000 + i, LANE_INTERACTIVE, 100);
    hold_seats(&h, LANE_INTERACTIVE, 1, SLOTS);
    assert_int_equal(claim_full(4, 1, &h, got).n, 4); // no more than it asked for
    h.of[0].seats = SLOTS - 4;
    for (int i = 0; i < 4; i++) {
        assert_false(is_tenant(&got[i], 1));
        hold_seats(&h, LANE_INTERACTIVE, (int)strtol(got[i].tenant + 24, NULL, 16), 1);
    }
    assert_int_equal(claim_full(2 * SLOTS, 1, &h, got).n, SLOTS - 5);
    for (int i = 0; i < SLOTS; i++)
        hold_seats(&full, LANE_INTERACTIVE, 1 + i, 1);
    assert_int_equal(claim_full(SLOTS, 1, &full, got).n, 0); // nobody has one to spare
}

static void one_that_had_its_share_waits_until_the_others_had_it(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    held h = {0};
    for (int i = 0; i < 100; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 100);
    enqueue_new(2, 1000, LANE_INTERACTIVE, 5000); // a long prompt
    enqueue_new(2, 1001, LANE_INTERACTIVE, 100);
    hold_seats(&h, LANE_INTERACTIVE, 1, SLOTS);
    queue_claims c = claim_full(SLOTS - 1, 1, &h, got);
    assert_int_equal(c.n, 1);
    assert_int_equal(c.tenants, 2);
    h.of[0].amount = 4900;
    assert_int_equal(claim_full(SLOTS - 1, 1, &h, got).n, 0);
    h.of[0].amount = 200;
    assert_int_equal(claim_full(SLOTS - 1, 1, &h, got).n, 1);
    assert_true(is_id(&got[0], 1001));
}

static void a_lane_takes_no_place_of_a_lane_above_it(void **state) {
    (void)state;
    static const struct {
        lane of, to;
        int n;
    } cases[] = {{LANE_INTERACTIVE, LANE_COMPLETION, 1}, {LANE_INTERACTIVE, LANE_BATCH, 0},
                 {LANE_COMPLETION, LANE_INTERACTIVE, 0}, {LANE_COMPLETION, LANE_COMPLETION, 1},
                 {LANE_BATCH, LANE_INTERACTIVE, 1},      {LANE_BATCH, LANE_BATCH, 1},
                 {LANE_INTERACTIVE, LANE_LAST, 1},       {LANE_COMPLETION, LANE_LAST, 0}};
    queue_claimed got[SLOTS];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        held h = {0};
        hold_seats(&h, cases[i].of, 1, SLOTS);
        enqueue_new(2, (int)i, cases[i].to, 100);
        assert_int_equal(claim_full(1, 0, &h, got).n, cases[i].to == LANE_LAST ? 0 : cases[i].n);
        assert_int_equal(claim_full(1, 1, &h, got).n, cases[i].to == LANE_LAST ? cases[i].n : 0);
        claim_with(1, all_lanes, got, NULL); // leaves nothing for the next case
    }
}

static void a_tenants_own_flood_does_not_hide_its_completions(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    held h = {0};
    hold_seats(&h, LANE_INTERACTIVE, 1, SLOTS);
    enqueue_new(1, 1, LANE_COMPLETION, 100);
    assert_int_equal(claim_full(1, 1, &h, got).n, 1);
}

static void a_visitor_of_a_lower_lane_gets_its_turn_however_many_go_above_it(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    held h = {0};
    int before = 0;
    hold_seats(&h, LANE_COMPLETION, 1, SLOTS);
    for (int i = 0; i < 100; i++)
        enqueue_new(1, i, LANE_COMPLETION, 100);
    enqueue_new(2, 1000, LANE_INTERACTIVE, 100);
    for (int i = 0; i < 8; i++) { // all of them take places of the first one
        enqueue_new(3 + i, 2000 + i, LANE_COMPLETION, 100);
        assert_int_equal(claim_full(1, 1, &h, got).n, 1);
        assert_int_equal(got[0].lane, LANE_COMPLETION);
    }
    while (claim_with(1, all_lanes, got, NULL) && got[0].lane != LANE_INTERACTIVE)
        before++;
    assert_int_equal(before, 0); // one for eight
}

static void a_full_worker_throws_expired_entries_away(void **state) {
    (void)state;
    queue_claimed got[SLOTS];
    held h = {0};
    int64_t n[N_LANES];
    err e = {0};
    hold_seats(&h, LANE_INTERACTIVE, 1, SLOTS);
    enqueue_new(1, 1, LANE_INTERACTIVE, 10);
    for (int i = 0; i < 4; i++) {
        entry x;
        make_entry(&x, 2 + i % 2, 10 + i, LANE_INTERACTIVE, 10);
        x.place.allow_ms = i < 2 ? 10 : 60000;
        enqueue(&x.place);
    }
    clock_sleep_ms(30);
    queue_claims c = claim_full(SLOTS - 1, 1, &h, got);
    assert_true(c.n == 2 && c.thrown == 2);
    assert_int_equal(queue_depth(r, TIER, n, &e), 0);
    assert_int_equal(n[LANE_INTERACTIVE], 1);
}

// ---- a worker in small: places, and what waits because it gave its place up

typedef struct seat {
    int tenant, left; // tokens to make; 0: free
} seat;

typedef struct toy {
    seat seats[SLOTS], evicted[64];
    int n_evicted;
    double weight[3], served[3], uncharged[3]; // by tenant
} toy;

static int count_seats(const toy *w, int tenant) { // 0: free ones
    int n = 0;
    for (int i = 0; i < SLOTS; i++)
        n += (w->seats[i].left ? w->seats[i].tenant : 0) == tenant;
    return n;
}

static void toy_begin(toy *w, seat s) {
    int most = count_seats(w, 1) > count_seats(w, 2) ? 1 : 2, at = -1;
    bool is_full = count_seats(w, 0) == 0;
    for (int i = 0; i < SLOTS; i++)
        if (is_full ? w->seats[i].tenant == most : w->seats[i].left == 0)
            at = i;
    if (is_full) {
        assert_true(count_seats(w, most) >= count_seats(w, s.tenant) + 2);
        w->evicted[w->n_evicted++] = w->seats[at];
    }
    w->seats[at] = s;
}

static void toy_claim(toy *w, const int cost[3], const int makes[3]) {
    queue_claimed got[2 * SLOTS];
    queue_claims claims = {.entries = got};
    queue_room asked = {.lanes = {0, SLOTS, 0, 0}};
    held h = {0};
    err e = {0};
    while (w->n_evicted && count_seats(w, 0))
        toy_begin(w, w->evicted[--w->n_evicted]);
    for (int t = 1; t <= 2; t++) {
        int n = count_seats(w, t);
        hold_seats(&h, LANE_INTERACTIVE, t, n)->amount = w->uncharged[t];
        asked.more += n > 1 ? n - 1 : 0;
        w->uncharged[t] = 0;
    }
    asked.max = count_seats(w, 0);
    assert_int_equal(queue_claim(r, TIER, &asked, h.of, h.n, &claims, &e), 0);
    for (int i = 0; i < claims.n; i++) {
        int t = is_tenant(&got[i], 2) ? 2 : 1;
        w->served[t] += cost[t] / w->weight[t];
        toy_begin(w, (seat){t, makes[t]});
    }
}

static void toy_step(toy *w) {
    for (int i = 0; i < SLOTS; i++)
        if (w->seats[i].left) {
            int t = w->seats[i].tenant;
            w->seats[i].left--;
            w->served[t] += 1 / w->weight[t];
            w->uncharged[t] += 1 / w->weight[t];
        }
}

// The bound of the service's difference holds whoever takes places of whom: one makes few long
// prompts, the other many short ones of more weight.
static void places_that_change_hands_leave_service_in_proportion(void **state) {
    (void)state;
    static const int cost[3] = {0, 400, 20}, makes[3] = {0, 3, 40};
    static const double weights[] = {1, 4};
    for (int k = 0; k < 2; k++) {
        toy w = {.weight = {0, 1, weights[k]}};
        start_afresh();
        for (int i = 0; i < 3000; i++)
            for (int t = 1; t <= 2; t++) {
                entry x;
                make_entry(&x, t, 3000 * t + i, LANE_INTERACTIVE, cost[t]);
                x.place.weight = w.weight[t];
                enqueue(&x.place);
            }
        for (int i = 0; i < 1500; i++) {
            toy_claim(&w, cost, makes);
            toy_step(&w);
            double ahead = w.served[1] - w.served[2];
            assert_true((ahead > 0 ? ahead : -ahead) <= 2 * SLOTS * 40);
        }
        assert_true(w.served[1] > 2000);
    }
}

// ---- entries that do not run

static void expired_entries_are_thrown_away(void **state) {
    (void)state;
    queue_claimed got[4];
    int thrown = 0;
    for (int i = 0; i < 5; i++) {
        entry x;
        make_entry(&x, 1, i, LANE_INTERACTIVE, 10);
        x.place.allow_ms = i < 3 ? 20 : 60000;
        enqueue(&x.place);
    }
    clock_sleep_ms(40);
    assert_int_equal(claim_with(4, all_lanes, got, &thrown), 2);
    assert_int_equal(thrown, 3);
    assert_int_equal(claim_with(4, all_lanes, got, &thrown), 0);
}

static void a_full_tenant_is_refused_alone_and_told_when_to_come_back(void **state) {
    (void)state;
    entry x;
    int64_t retry_ms = 0;
    queue_claimed got[1];
    for (int i = 0; i < 16; i++)
        enqueue_new(1, i, LANE_INTERACTIVE, 10);
    make_entry(&x, 1, 16, LANE_INTERACTIVE, 10);
    assert_string_equal(enqueue_limited(&x.place, NULL, 0, 16, 100, &retry_ms), "FULL");
    assert_int_equal(retry_ms, -1); // nobody claims
    make_entry(&x, 2, 17, LANE_INTERACTIVE, 10);
    assert_string_equal(enqueue_limited(&x.place, NULL, 0, 16, 100, NULL), "OK");
    for (int i = 0; i < 4; i++)
        claim_with(1, all_lanes, got, NULL);
    make_entry(&x, 3, 18, LANE_INTERACTIVE, 10);
    assert_string_equal(enqueue_limited(&x.place, NULL, 0, 16, 13, &retry_ms), "FULL");
    assert_true(retry_ms > 0 && retry_ms < 5000);
}

static void a_refused_entry_leaves_no_payload_behind(void **state) {
    (void)state;
    entry x;
    char key[160];
    buf b = {0};
    err e = {0};
    int found = 1;
    make_entry(&x, 1, 1, LANE_INTERACTIVE, 10);
    queue_key_payload(key, sizeof key, TIER, x.id, 1);
    redis_reply_box *box = NULL;
    redis_call(r, 3, (const char *const[]){"SET", key, "job"}, NULL, &box, &e);
    redis_reply_free(box);
    assert_string_equal(enqueue_limited(&x.place, NULL, 0, 0, 100, NULL), "FULL");
    assert_int_equal(queue_take_payload(r, TIER, x.id, 1, &b, &found, &e), 0);
    assert_int_equal(found, 0);
    buf_release(&b);
}

static void a_cancelled_entry_is_gone_with_its_payload(void **state) {
    (void)state;
    entry x;
    queue_claimed got[2];
    command c = {0};
    enqueue_new(1, 1, LANE_INTERACTIVE, 10);
    make_entry(&x, 1, 2, LANE_INTERACTIVE, 10);
    enqueue(&x.place);
    for (int i = 0; i < 2; i++) {
        queue_cancel_command(&x.place, &c);
        redis_reply_box *box = send_command(&c);
        assert_int_equal(redis_value_int(redis_reply_value(box)), i == 0); // twice: no effect
        redis_reply_free(box);
    }
    entry still;
    make_entry(&still, 1, 1, LANE_INTERACTIVE, 10);
    assert_true(queue_is_same(&x.place, &still.place));
    queue_scores_command((const queue_place *[]){&x.place, &still.place}, 2, &c);
    redis_reply_box *box = send_command(&c);
    assert_int_equal(redis_value_kind(redis_value_at(redis_reply_value(box), 0)), REDIS_NIL);
    assert_int_equal(redis_value_kind(redis_value_at(redis_reply_value(box), 1)), REDIS_STRING);
    redis_reply_free(box);
    assert_int_equal(claim_with(2, all_lanes, got, NULL), 1);
    assert_true(is_id(&got[0], 1));
    command_release(&c);
}

static void a_later_attempt_replaces_the_entry_and_keeps_its_place(void **state) {
    (void)state;
    entry x, again;
    queue_claimed got[4];
    make_entry(&x, 1, 1, LANE_INTERACTIVE, 10);
    enqueue(&x.place);
    clock_sleep_ms(20);
    enqueue_new(1, 2, LANE_INTERACTIVE, 10);
    again = x;
    again.place.attempt = 2;
    // 25 ms since it was accepted; a limit does not hold it back
    assert_string_equal(enqueue_limited(&again.place, &x.place, 25, 0, 0, NULL), "OK");
    assert_int_equal(claim_with(4, all_lanes, got, NULL), 2);
    assert_true(is_id(&got[0], 1) && got[0].attempt == 2);
    assert_true(got[0].waited_ms >= 20);
    assert_true(is_id(&got[1], 2));
}

static void a_payload_is_taken_once(void **state) {
    (void)state;
    char key[160], id[ID_UUID_TEXT];
    buf b = {0};
    err e = {0};
    int found = 0;
    redis_reply_box *box = NULL;
    queue_key_payload(key, sizeof key, TIER, id_of(id, 7), 2);
    redis_call(r, 3, (const char *const[]){"SET", key, "sealed"}, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(queue_take_payload(r, TIER, id, 2, &b, &found, &e), 0);
    assert_int_equal(found, 1);
    assert_string_equal(b.data, "sealed");
    assert_int_equal(queue_take_payload(r, TIER, id, 2, &b, &found, &e), 0);
    assert_int_equal(found, 0);
    buf_release(&b);
}

static void counts_never_drift_from_the_sets(void **state) {
    (void)state;
    queue_claimed got[4];
    entry x[64];
    char made[64] = {0};
    srand(5);
    for (int step = 0; step < 3000; step++) {
        int k = rand() % 64;
        command c = {0};
        if (rand() % 3 == 0) {
            claim_with(1 + rand() % 3, all_lanes, got, NULL);
        } else if (rand() % 4 == 0 && made[k]) {
            queue_cancel_command(&x[k].place, &c);
            redis_reply_free(send_command(&c));
        } else {
            make_entry(&x[k], k % 5, k, (lane)(rand() % 4), 1 + rand() % 50);
            x[k].place.allow_ms = rand() % 10 ? 60000 : 0;
            made[k] = 1;
            enqueue(&x[k].place);
        }
        command_release(&c);
    }
    for (int i = 0; i < 200; i++) // one lane-l entry a claim
        claim_with(4, all_lanes, got, NULL);
    command c = {0};
    command_words(&c, 4, (const char *const[]){"FCALL", "tq2_look", "1", "tg:{" TIER "}:"});
    command_int(&c, 100);
    redis_reply_box *box = send_command(&c);
    assert_int_equal(redis_value_len(redis_reply_value(box)), 0);
    redis_reply_free(box);
    enqueue_new(9, 999, LANE_BATCH, 1); // the tier's total is back at 0: a limit of 1 lets it in
    entry y;
    make_entry(&y, 8, 998, LANE_BATCH, 1);
    assert_string_equal(enqueue_limited(&y.place, NULL, 0, 10, 2, NULL), "OK");
    command_release(&c);
}

// ---- bell, reply stream, names, loss of the library

static void the_bell_rings_for_the_hungry_and_when_a_tenant_starts_to_wait(void **state) {
    (void)state;
    queue_claimed got[2];
    redis *ear = NULL;
    redis_reply_box *box = NULL;
    err e = {0};
    char bell[64];
    queue_key_bell(bell, sizeof bell, TIER);
    assert_int_equal(redis_connect(test_redis()->address, 300, &ear, &e), 0);
    assert_int_equal(redis_call(ear, 2, (const char *const[]){"SUBSCRIBE", bell}, NULL, &box, &e),
                     0);
    redis_reply_free(box);
    enqueue_new(1, 1, LANE_INTERACTIVE, 1); // rings: a tenant starts to wait
    enqueue_new(1, 2, LANE_INTERACTIVE, 1); // nobody is hungry
    claim_with(2, all_lanes, got, NULL);
    enqueue_new(1, 3, LANE_BATCH, 1); // rings
    enqueue_new(1, 4, LANE_BATCH, 1);
    claim_with(1, all_lanes, got, NULL);
    enqueue_new(1, 5, LANE_BATCH, 1);
    static const int no_batch[N_LANES] = {1, 1, 0, 0};
    claim_with(1, no_batch, got, NULL); // finds nothing
    enqueue_new(1, 6, LANE_BATCH, 1);   // rings
    for (int i = 0; i < 3; i++) {
        assert_int_equal(redis_get_reply(ear, &box, &e), 0);
        assert_true(redis_value_is(redis_value_at(redis_reply_value(box), 2), i ? "b" : "i"));
        redis_reply_free(box);
    }
    assert_int_equal(redis_get_reply(ear, &box, &e), -1); // then silence
    redis_close(ear);
}

static void a_reply_to_a_gateway_without_lease_says_so(void **state) {
    (void)state;
    int alive = 1;
    err e = {0};
    char key[64];
    redis_reply_box *box = NULL;
    assert_int_equal(queue_send_reply(r, 0xabcu, "x", 1, &alive, &e), 0);
    assert_int_equal(alive, 0);
    queue_key_gateway(key, sizeof key, 0xabcu);
    redis_call(r, 5, (const char *const[]){"XADD", key, "*", "r", ""}, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(queue_send_reply(r, 0xabcu, "x", 1, &alive, &e), 0);
    assert_int_equal(alive, 1);
}

static void a_cancel_message_is_read_as_it_was_written(void **state) {
    (void)state;
    char id[ID_UUID_TEXT], back[ID_UUID_TEXT];
    int attempt = 0;
    uint64_t run = 0;
    command c = {0};
    queue_stop_command(5, id_of(id, 3), 2, 0xfffffffffffffffeu, &c);
    assert_string_equal(c.argv[1], "tg:c:0000000000000005");
    assert_int_equal(queue_cancel_parse(c.argv[2], c.len[2], back, &attempt, &run), 0);
    assert_string_equal(back, id);
    assert_true(attempt == 2 && run == 0xfffffffffffffffeu);
    for (size_t n = 0; n < 40; n++)
        assert_int_equal(queue_cancel_parse(c.argv[2], n, back, &attempt, &run), -1);
    assert_int_equal(
        queue_cancel_parse("01900000-0000-7000-8000-000000000003 0 1", 40, back, &attempt, &run),
        -1);
    assert_int_equal(
        queue_cancel_parse("01900000-0000-7000-8000-000000000003 1 1 x", 42, back, &attempt, &run),
        -1);
    command_release(&c);
}

static void a_claim_loads_the_library_again_when_redis_lost_it(void **state) {
    (void)state;
    redis_reply_box *box = NULL;
    queue_claimed got[1];
    err e = {0};
    redis_call(r, 2, (const char *const[]){"FUNCTION", "FLUSH"}, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(claim_with(1, all_lanes, got, NULL), 0);
    enqueue_new(1, 1, LANE_INTERACTIVE, 1);
}

static void a_redis_that_evicts_is_refused(void **state) {
    (void)state;
    redis_reply_box *box = NULL;
    err e = {0};
    const char *set[] = {"CONFIG", "SET", "maxmemory-policy", "allkeys-lru"};
    redis_call(r, 4, set, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(queue_prepare(r, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "redis.address");
    set[3] = "noeviction";
    redis_call(r, 4, set, NULL, &box, &e);
    redis_reply_free(box);
    assert_int_equal(queue_prepare(r, &e), 0);
}

int main(void) {
#define WITH_REDIS(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_REDIS(a_tenant_is_served_in_order_of_acceptance),
        WITH_REDIS(one_claim_serves_the_least_served_tenant_first),
        WITH_REDIS(two_that_always_wait_get_equal_service),
        WITH_REDIS(a_weight_of_two_earns_twice_the_service),
        WITH_REDIS(output_is_charged_with_the_next_claim),
        WITH_REDIS(a_tenant_that_was_away_earns_nothing_by_it),
        WITH_REDIS(lanes_go_by_priority_and_none_starves),
        WITH_REDIS(the_depth_counts_every_lane),
        WITH_REDIS(a_visitor_beside_a_flood_of_ten_thousand_is_passed_over_once_at_most),
        WITH_REDIS(a_worker_gets_one_last_attempt_and_it_goes_first),
        WITH_REDIS(room_of_a_lane_is_respected),
        WITH_REDIS(a_full_worker_takes_a_visitor_and_nothing_of_the_flood),
        WITH_REDIS(visitors_that_come_at_once_get_a_place_each_while_there_are_any),
        WITH_REDIS(one_that_had_its_share_waits_until_the_others_had_it),
        WITH_REDIS(a_lane_takes_no_place_of_a_lane_above_it),
        WITH_REDIS(a_tenants_own_flood_does_not_hide_its_completions),
        WITH_REDIS(a_visitor_of_a_lower_lane_gets_its_turn_however_many_go_above_it),
        WITH_REDIS(a_full_worker_throws_expired_entries_away),
        WITH_REDIS(places_that_change_hands_leave_service_in_proportion),
        WITH_REDIS(expired_entries_are_thrown_away),
        WITH_REDIS(a_full_tenant_is_refused_alone_and_told_when_to_come_back),
        WITH_REDIS(a_refused_entry_leaves_no_payload_behind),
        WITH_REDIS(a_cancelled_entry_is_gone_with_its_payload),
        WITH_REDIS(a_later_attempt_replaces_the_entry_and_keeps_its_place),
        WITH_REDIS(a_payload_is_taken_once),
        WITH_REDIS(counts_never_drift_from_the_sets),
        WITH_REDIS(the_bell_rings_for_the_hungry_and_when_a_tenant_starts_to_wait),
        WITH_REDIS(a_reply_to_a_gateway_without_lease_says_so),
        WITH_REDIS(a_cancel_message_is_read_as_it_was_written),
        WITH_REDIS(a_claim_loads_the_library_again_when_redis_lost_it),
        WITH_REDIS(a_redis_that_evicts_is_refused),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// The codecs of job and reply: what is written is what is read; nothing malformed is accepted,
// nothing malformed makes the reader touch bytes it was not given (run under ASan).
#include "router/job.h"
#include "router/reply.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define ID "0190f3a1-8c2b-7def-8123-456789abcdef"
#define TENANT "0190f3a1-8c2b-7def-8123-0123456789ab"

static const int32_t prompt[] = {1, 2, 49151, 7}, made[] = {5, 6};

static job full_job(void) {
    job j = {.id = ID,
             .attempt = 2,
             .gateway = 0xfedcba9876543210u,
             .ms_left = 59321,
             .tenant = TENANT,
             .model = "smollm2-135m",
             .adapter = "team-a",
             .prompt = prompt,
             .n_prompt = 4,
             .n_choices = 2,
             .max_tokens = 512,
             .n_stops = 2,
             .ignore_end = true,
             .echo_logprobs = true};
    j.so_far[1].ids = made;
    j.so_far[1].n = 2;
    j.so_far[1].finished = true;
    j.stops[0] = (job_stop){"\n\n", 2};
    j.stops[1] = (job_stop){"a\0b", 3};
    j.sampling = (sampling_params){.seed = 1ull << 63,
                                   .temperature = 0.7f,
                                   .top_p = 0.9f,
                                   .min_p = 0.05f,
                                   .top_k = 40,
                                   .presence_penalty = -1.5f,
                                   .frequency_penalty = 2,
                                   .repetition_penalty = 1.1f,
                                   .n_top_logprobs = 3,
                                   .n_bias = 1};
    j.sampling.bias[0] = (logit_bias){9, -100};
    return j;
}

static void assert_same_job(const job *a, const job *b) {
    assert_string_equal(a->id, b->id);
    assert_int_equal(a->attempt, b->attempt);
    assert_true(a->gateway == b->gateway && a->ms_left == b->ms_left);
    assert_string_equal(a->tenant, b->tenant);
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->adapter, b->adapter);
    assert_int_equal(a->n_prompt, b->n_prompt);
    assert_memory_equal(a->prompt, b->prompt, (size_t)a->n_prompt * 4);
    assert_int_equal(a->n_choices, b->n_choices);
    for (int i = 0; i < a->n_choices; i++) {
        assert_int_equal(a->so_far[i].n, b->so_far[i].n);
        assert_int_equal(a->so_far[i].finished, b->so_far[i].finished);
        if (a->so_far[i].n)
            assert_memory_equal(a->so_far[i].ids, b->so_far[i].ids, (size_t)a->so_far[i].n * 4);
    }
    assert_int_equal(a->max_tokens, b->max_tokens);
    assert_memory_equal(&a->sampling, &b->sampling, sizeof a->sampling);
    assert_int_equal(a->n_stops, b->n_stops);
    for (int i = 0; i < a->n_stops; i++) {
        assert_int_equal(a->stops[i].n, b->stops[i].n);
        assert_memory_equal(a->stops[i].text, b->stops[i].text, a->stops[i].n);
    }
    assert_true(a->ignore_end == b->ignore_end && a->fim == b->fim &&
                a->echo_logprobs == b->echo_logprobs);
}

static void a_job_is_read_as_it_was_written(void **state) {
    (void)state;
    job j = full_job(), back;
    buf b = {0};
    arena a;
    err e = {0};
    arena_init(&a);
    job_encode(&j, &b);
    assert_int_equal(job_decode(b.data, b.len, &a, &back, &e), 0);
    assert_same_job(&j, &back);
    buf_release(&b);
    arena_release(&a);
}

// An exact copy on the heap, so that one byte read too many is seen by ASan.
static int decode_job_copy(const void *p, size_t n) {
    void *copy = malloc(n ? n : 1);
    memcpy(copy, p, n);
    arena a;
    arena_init(&a);
    job j;
    err e = {0};
    int rc = job_decode(copy, n, &a, &j, &e);
    assert_true(rc == 0 || e.code == ERR_FORMAT);
    arena_release(&a);
    free(copy);
    return rc;
}

static int decode_reply_copy(const void *p, size_t n) {
    void *copy = malloc(n ? n : 1);
    memcpy(copy, p, n);
    arena a;
    arena_init(&a);
    reply r;
    err e = {0};
    int rc = reply_decode(copy, n, &a, &r, &e);
    assert_true(rc == 0 || e.code == ERR_FORMAT);
    arena_release(&a);
    free(copy);
    return rc;
}

static void every_truncation_and_every_extra_byte_is_refused(void **state) {
    (void)state;
    job j = full_job();
    buf b = {0};
    job_encode(&j, &b);
    for (size_t n = 0; n < b.len; n++)
        assert_int_equal(decode_job_copy(b.data, n), -1);
    buf_put_u8(&b, 0);
    assert_int_equal(decode_job_copy(b.data, b.len), -1);
    buf_release(&b);
}

static void every_value_out_of_range_is_refused(void **state) {
    (void)state;
    job good = full_job();
    job bad[11];
    for (int i = 0; i < 11; i++)
        bad[i] = good;
    static const int32_t negative[] = {1, -1};
    int n = 0;
    bad[n++].attempt = 0;
    bad[n++].n_choices = 0;
    bad[n++].sampling.temperature = NAN;
    bad[n++].sampling.temperature = 2.1f;
    bad[n++].sampling.top_p = 0;
    bad[n++].sampling.n_top_logprobs = 21;
    bad[n++].sampling.repetition_penalty = INFINITY;
    bad[n++].max_tokens = 1; // fewer than so_far
    bad[n++].n_prompt = 0;
    bad[n].n_prompt = 2;
    bad[n++].prompt = negative;
    bad[n++].stops[0].n = 0;
    for (int i = 0; i < n; i++) {
        buf b = {0};
        job_encode(&bad[i], &b);
        assert_int_equal(decode_job_copy(b.data, b.len), -1);
        buf_release(&b);
    }
}

static void a_flipped_byte_never_crashes_the_reader(void **state) {
    (void)state;
    job j = full_job();
    buf b = {0};
    job_encode(&j, &b);
    srand(7);
    for (int i = 0; i < 20000; i++) {
        size_t at = (size_t)rand() % b.len;
        char was = b.data[at];
        b.data[at] = (char)rand();
        decode_job_copy(b.data, b.len);
        b.data[at] = was;
    }
    buf_release(&b);
}

static void random_bytes_never_crash_the_readers(void **state) {
    (void)state;
    uint8_t noise[300];
    srand(11);
    for (int i = 0; i < 20000; i++) {
        size_t n = (size_t)rand() % sizeof noise;
        for (size_t k = 0; k < n; k++)
            noise[k] = (uint8_t)rand();
        if (n && i % 2)
            noise[0] = 1;
        decode_job_copy(noise, n);
        decode_reply_copy(noise, n);
    }
}

static void a_sealed_job_opens_only_for_its_request_and_attempt(void **state) {
    (void)state;
    secret_ring ring = {.n = 1}, other = {.n = 1};
    ring.keys[0].id = 1;
    other.keys[0] = (secret){.id = 1, .key = {1}};
    job j = full_job(), back;
    buf b = {0};
    arena a;
    err e = {0};
    arena_init(&a);
    assert_int_equal(job_seal(&j, &ring, &b, &e), 0);
    assert_int_equal(job_open(b.data, b.len, ID, 2, &ring, &a, &back, &e), 0);
    assert_same_job(&j, &back);
    assert_int_equal(job_open(b.data, b.len, ID, 3, &ring, &a, &back, &e), -1);
    assert_int_equal(job_open(b.data, b.len, TENANT, 2, &ring, &a, &back, &e), -1);
    assert_int_equal(job_open(b.data, b.len, ID, 2, &other, &a, &back, &e), -1);
    b.data[b.len / 2] ^= 1;
    assert_int_equal(job_open(b.data, b.len, ID, 2, &ring, &a, &back, &e), -1);
    buf_release(&b);
    arena_release(&a);
}

// ---- replies

static const reply_logprob tops[] = {{3, -0.5f}, {4, -1.25f}};
static reply_token tokens[] = {{3, -0.5f, 2, tops}, {8, NAN, 0, NULL}};
static reply_token plain_tokens[] = {{3, NAN, 0, NULL}, {8, NAN, 0, NULL}};
static reply_frame frames[] = {
    {.id = ID, .attempt = 1, .run = 0x1122334455667788u, .flags = REPLY_CLAIM, .queue_ms = 17},
    {.id = TENANT,
     .choice = 7,
     .attempt = 3,
     .run = 5,
     .flags = REPLY_PREFILLED | REPLY_LAST | REPLY_BEGUN,
     .from = 100,
     .tokens = tokens,
     .n_tokens = 2,
     .text = "h\xc3\xa9\xf0\x9f\x98\x80",
     .n_text = 7,
     .finish = FINISH_LENGTH,
     .cached = 64,
     .queue_ms = 18,
     .queue_steps = 2,
     .engine_us = 1234},
    {.id = ID, .attempt = 1, .run = 1, .tokens = plain_tokens, .n_tokens = 2},
};
static const reply full_reply = {.worker = 0xabcdefu, .frames = frames, .n_frames = 3};

static void assert_same_frame(const reply_frame *a, const reply_frame *b) {
    assert_string_equal(a->id, b->id);
    assert_true(a->choice == b->choice && a->attempt == b->attempt && a->run == b->run);
    assert_true(a->flags == b->flags && a->from == b->from && a->finish == b->finish);
    assert_true(a->cached == b->cached && a->queue_ms == b->queue_ms &&
                a->queue_steps == b->queue_steps && a->engine_us == b->engine_us);
    assert_int_equal(a->n_text, b->n_text);
    if (a->n_text)
        assert_memory_equal(a->text, b->text, a->n_text);
    assert_int_equal(a->n_tokens, b->n_tokens);
    for (int i = 0; i < a->n_tokens; i++) {
        const reply_token *x = &a->tokens[i], *y = &b->tokens[i];
        assert_int_equal(x->id, y->id);
        assert_true(isnan(x->logprob) ? isnan(y->logprob) : x->logprob == y->logprob);
        assert_int_equal(x->n_top, y->n_top);
        for (int k = 0; k < x->n_top; k++)
            assert_true(x->top[k].id == y->top[k].id && x->top[k].logprob == y->top[k].logprob);
    }
}

static void a_reply_is_read_as_it_was_written(void **state) {
    (void)state;
    buf b = {0};
    arena a;
    reply back;
    err e = {0};
    arena_init(&a);
    reply_encode(&full_reply, &b);
    assert_int_equal(reply_decode(b.data, b.len, &a, &back, &e), 0);
    assert_true(back.worker == full_reply.worker);
    assert_int_equal(back.n_frames, 3);
    for (int i = 0; i < 3; i++)
        assert_same_frame(&frames[i], &back.frames[i]);
    buf_release(&b);
    arena_release(&a);
}

static void every_truncation_of_a_reply_is_refused(void **state) {
    (void)state;
    buf b = {0};
    reply_encode(&full_reply, &b);
    for (size_t n = 0; n < b.len; n++)
        assert_int_equal(decode_reply_copy(b.data, n), -1);
    buf_put_u8(&b, 0);
    assert_int_equal(decode_reply_copy(b.data, b.len), -1);
    buf_release(&b);
}

static void a_flipped_byte_of_a_reply_never_crashes_the_reader(void **state) {
    (void)state;
    buf b = {0};
    reply_encode(&full_reply, &b);
    srand(13);
    for (int i = 0; i < 20000; i++) {
        size_t at = (size_t)rand() % b.len;
        char was = b.data[at];
        b.data[at] = (char)rand();
        decode_reply_copy(b.data, b.len);
        b.data[at] = was;
    }
    buf_release(&b);
}

static void a_reply_whose_text_is_not_utf8_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"\xff", "\xc3", "\xed\xa0\x80", "a\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reply_frame f = {.id = ID, .attempt = 1, .text = bad[i], .n_text = strlen(bad[i])};
        reply r = {.worker = 1, .frames = &f, .n_frames = 1};
        buf b = {0};
        reply_encode(&r, &b);
        assert_int_equal(decode_reply_copy(b.data, b.len), -1);
        buf_release(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_is_read_as_it_was_written),
        cmocka_unit_test(every_truncation_and_every_extra_byte_is_refused),
        cmocka_unit_test(every_value_out_of_range_is_refused),
        cmocka_unit_test(a_flipped_byte_never_crashes_the_reader),
        cmocka_unit_test(random_bytes_never_crash_the_readers),
        cmocka_unit_test(a_sealed_job_opens_only_for_its_request_and_attempt),
        cmocka_unit_test(a_reply_is_read_as_it_was_written),
        cmocka_unit_test(every_truncation_of_a_reply_is_refused),
        cmocka_unit_test(a_flipped_byte_of_a_reply_never_crashes_the_reader),
        cmocka_unit_test(a_reply_whose_text_is_not_utf8_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

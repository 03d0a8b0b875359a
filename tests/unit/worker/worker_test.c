// The whole worker role in a process of its own, on a private Redis, with the tiny model: jobs are
// enqueued as a gateway does, replies are read from its stream.
#include "worker/worker.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "router/queue.h"
#include "tests/support/letterbox.h"
#include "tests/support/servers.h"
#include "tests/support/tiny_model.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define TIER "7b"
#define TENANT "01900000-0000-7000-8000-00000000000a"

static secret_ring cluster;
static int32_t prompt[64];
static letterbox m;
static pid_t worker;
static char said[512]; // its ready line

// ---- the process

static void fill_config(config *c) {
    char set[4][512];
    snprintf(set[0], sizeof set[0], "model.tiny.path=%s/tiny.gguf", test_dir());
    snprintf(set[1], sizeof set[1], "general.data_dir=%s", test_dir());
    snprintf(set[2], sizeof set[2], "redis.address=%s", test_redis()->address);
    snprintf(set[3], sizeof set[3], "model.tiny.tier=" TIER);
    const char *const sets[] = {set[0],
                                set[1],
                                set[2],
                                set[3],
                                "worker.threads=1",
                                "worker.slots=2",
                                "worker.step_tokens=32",
                                "worker.kv_bytes=4MiB",
                                "worker.ops_listen=127.0.0.1:0"};
    err e = {0};
    if (config_load(c, NULL, sets, sizeof sets / sizeof *sets, &e))
        fail_msg("%s", e.message);
}

static void start_worker(void) {
    int ends[2];
    size_t n = 0;
    config c;
    fill_config(&c);
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    worker = fork();
    assert_true(worker >= 0);
    if (worker == 0) {
        err e = {0};
        close(ends[0]);
        log_init("worker", LOG_WARN);
        int rc = worker_run(&c, "tiny", ends[1], &e);
        if (rc)
            fprintf(stderr, "worker: %s\n", e.message);
        exit(rc ? 1 : 0);
    }
    close(ends[1]);
    struct pollfd p = {.fd = ends[0], .events = POLLIN};
    while (n < sizeof said - 1 && poll(&p, 1, 20000) > 0) {
        ssize_t got = read(ends[0], said + n, sizeof said - 1 - n);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    said[n] = 0;
    close(ends[0]);
}

// Its exit status, or -1 when it does not end within ms.
static int wait_end(int ms) {
    int status;
    for (int64_t until = clock_mono_ms() + ms; clock_mono_ms() < until; clock_sleep_ms(5))
        if (waitpid(worker, &status, WNOHANG) == worker) {
            worker = 0;
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    return -1;
}

static int setup(void **state) {
    (void)state;
    static uint64_t gateway = 1000;
    err e = {0};
    char dir[96], path[96];
    snprintf(dir, sizeof dir, "%s/secrets", test_dir());
    snprintf(path, sizeof path, "%s/tiny.gguf", test_dir());
    if (gateway == 1000) {
        buf bytes = {0};
        tiny_model_bytes(tiny_model_find("llama"), &bytes);
        if (file_mkdirs(dir, 0700, &e) || secret_ring_load(dir, "cluster", true, &cluster, &e) ||
            file_write_atomic(path, 0600, bytes.data, bytes.len, &e))
            fail_msg("%s", e.message);
        buf_release(&bytes);
        for (int i = 0; i < 64; i++)
            prompt[i] = 97 + i % 26;
    }
    letterbox_open(&m, test_redis()->address, ++gateway);
    redis_reply_box *box = NULL;
    redis_call(m.r, 1, (const char *[]){"FLUSHALL"}, NULL, &box, &e);
    redis_reply_free(box);
    letterbox_close(&m);
    letterbox_open(&m, test_redis()->address, gateway);
    assert_int_equal(queue_prepare(m.r, &e), 0);
    start_worker();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    if (worker) {
        kill(worker, SIGKILL);
        waitpid(worker, NULL, 0);
    }
    letterbox_close(&m);
    return 0;
}

// ---- a gateway's part

static void send_command(command *c) {
    redis_reply_box *box = NULL;
    err e = {0};
    if (command_call(c, m.r, &box, &e))
        fail_msg("%s", e.message);
    assert_int_not_equal(redis_value_kind(redis_reply_value(box)), REDIS_ERROR);
    redis_reply_free(box);
    command_release(c);
}

static void put_payload(const job *j, const void *p, size_t n) {
    char key[160];
    command set = {0};
    queue_key_payload(key, sizeof key, TIER, j->id, j->attempt);
    command_text(&set, "SET");
    command_text(&set, key);
    command_bytes(&set, p, n);
    send_command(&set);
}

static void enqueue_entry(const job *j, lane l) {
    queue_place place = {.tier = TIER,
                         .tenant = TENANT,
                         .id = j->id,
                         .lane = l,
                         .attempt = j->attempt,
                         .cost = j->n_prompt,
                         .weight = 1,
                         .allow_ms = 60000};
    command c = {0};
    queue_enqueue_command(&place, NULL, 0, 1000, 1000, &c);
    send_command(&c);
}

static void enqueue(const job *j) {
    buf sealed = {0};
    err e = {0};
    if (job_seal(j, &cluster, &sealed, &e))
        fail_msg("%s", e.message);
    put_payload(j, sealed.data, sealed.len);
    enqueue_entry(j, LANE_INTERACTIVE);
    buf_release(&sealed);
}

static bool wait_tokens(const char *id, int n, int ms) {
    for (int64_t until = clock_mono_ms() + ms; clock_mono_ms() < until; clock_sleep_ms(2)) {
        letterbox_read(&m);
        if (letterbox_find(&m, id)->choices[0].n >= n)
            return true;
    }
    return false;
}

static void stop_run(const job *j, uint64_t run) {
    command c = {0};
    queue_stop_command(m.worker, j->id, j->attempt, run, &c);
    send_command(&c);
}

static int64_t waiting(void) { // entries in the queue
    redis_reply_box *box = NULL;
    err e = {0};
    const char *key = "tg:{" TIER "}:q:i:" TENANT;
    assert_int_equal(redis_call(m.r, 2, (const char *[]){"ZCARD", key}, NULL, &box, &e), 0);
    int64_t n = redis_value_int(redis_reply_value(box));
    redis_reply_free(box);
    return n;
}

// ---- the good case

static void it_says_when_it_is_ready(void **state) {
    (void)state;
    assert_non_null(strstr(said, "\"model\":\"tiny\""));
    assert_non_null(strstr(said, "\"backend\":"));
    assert_non_null(strstr(said, "\"ops_url\":\"http://127.0.0.1:"));
    assert_int_equal(said[strlen(said) - 1], '\n');
}

static void a_job_is_claimed_and_answered(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 40, 20);
    enqueue(&j);
    assert_true(letterbox_wait_last(&m, j.id, 1, 10000));
    const told *t = letterbox_find(&m, j.id);
    assert_int_equal(t->n_claims, 1);
    assert_int_equal(t->n_prefilled, 1);
    assert_int_equal(t->choices[0].n, 20);
    assert_int_equal(t->choices[0].finish, FINISH_LENGTH);
    assert_true(t->choices[0].text.len > 0);
    assert_true(t->engine_us > 0);
}

static void many_jobs_are_answered_like_each_alone(void **state) {
    (void)state;
    job j[6];
    told_choice first;
    for (int i = 0; i < 6; i++) {
        j[i] = letterbox_job(&m, i + 1, prompt, 20 + i % 2, 25);
        enqueue(&j[i]);
    }
    for (int i = 0; i < 6; i++)
        assert_true(letterbox_wait_last(&m, j[i].id, 1, 20000));
    for (int i = 2; i < 6; i++) {
        first = letterbox_find(&m, j[i % 2].id)->choices[0];
        assert_memory_equal(letterbox_find(&m, j[i].id)->choices[0].ids, first.ids,
                            25 * sizeof(int32_t));
    }
}

static void a_worker_takes_its_slots_and_one_more(void **state) {
    (void)state;
    job j[6];
    for (int i = 0; i < 6; i++) {
        j[i] = letterbox_job(&m, i + 1, prompt, 5, 100000);
        j[i].max_tokens = 100;
    }
    kill(worker, SIGSTOP); // so that all of them are there when it looks
    for (int i = 0; i < 6; i++)
        enqueue(&j[i]);
    assert_int_equal(waiting(), 6);
    kill(worker, SIGCONT);
    assert_true(wait_tokens(j[0].id, 1, 5000));
    assert_true(waiting() >= 1); // 2 slots + 1 are taken, at most one more since
    for (int i = 0; i < 6; i++)
        assert_true(letterbox_wait_last(&m, j[i].id, 1, 20000));
}

static void a_bell_brings_work_at_once(void **state) {
    (void)state;
    int64_t most = 0;
    clock_sleep_ms(1200); // it has asked in vain: hungry
    for (int i = 0; i < 4; i++) {
        job j = letterbox_job(&m, i + 1, prompt, 3, 1);
        int64_t begun = clock_mono_ms();
        enqueue(&j);
        assert_true(letterbox_wait_last(&m, j.id, 1, 5000));
        int64_t took = clock_mono_ms() - begun;
        most = took > most ? took : most;
    }
    assert_in_range(most, 0, 600); // not the second of a claim without a bell
}

static void a_slot_that_frees_is_filled_at_once(void **state) {
    (void)state;
    enum { N = 16 };
    job j[N];
    kill(worker, SIGSTOP);
    for (int i = 0; i < N; i++) {
        j[i] = letterbox_job(&m, i + 1, prompt, 5, 3);
        enqueue(&j[i]);
    }
    kill(worker, SIGCONT);
    int64_t begun = clock_mono_ms();
    for (int i = 0; i < N; i++)
        assert_true(letterbox_wait_last(&m, j[i].id, 1, 20000));
    assert_in_range(clock_mono_ms() - begun, 0, 2500); // two slots: a claim a second took eight
}

// ---- the prefix cache

// What the worker's operations listener says of a metric; -1: nothing.
static int64_t metric_of(const char *name) {
    static char text[65536];
    const char *port = strstr(said, "http://127.0.0.1:");
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    size_t n = 0;
    ssize_t got;
    assert_non_null(port);
    to.sin_port = htons((uint16_t)atoi(port + strlen("http://127.0.0.1:")));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    dprintf(fd, "GET /metrics HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n");
    while (n < sizeof text - 1 && (got = read(fd, text + n, sizeof text - 1 - n)) > 0)
        n += (size_t)got;
    close(fd);
    text[n] = 0;
    char line[128];
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(text, line);
    return at ? atoll(at + strlen(line)) : -1;
}

static bool wait_metric(const char *name, int64_t value) { // it is set after the reply left
    for (int i = 0; i < 500; i++, clock_sleep_ms(10))
        if (metric_of(name) == value)
            return true;
    return false;
}

static void a_tenant_finds_its_own_prompts_and_no_others(void **state) {
    (void)state;
    static const int cached[] = {0, 32, 0};
    for (int i = 0; i < 3; i++) {
        job j = letterbox_job(&m, i + 1, prompt, 40, 5);
        j.tenant[35] = i == 2 ? 'b' : 'a';
        enqueue(&j);
        assert_true(letterbox_wait_last(&m, j.id, 1, 10000));
        assert_int_equal(letterbox_find(&m, j.id)->n_prefilled, 1);
        assert_int_equal(letterbox_find(&m, j.id)->cached, cached[i]);
    }
    assert_true(wait_metric("tiergate_worker_prefix_hit_pages_total", 2));
    assert_true(wait_metric("tiergate_worker_prefix_miss_pages_total", 4));
    assert_true(wait_metric("tiergate_worker_prefix_evicted_pages_total", 0));
    assert_true(wait_metric("tiergate_worker_prefix_pages", 4));
}

// ---- what ends a run

static void a_cancelled_run_stops_and_says_no_more(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 100), k = letterbox_job(&m, 2, prompt, 5, 40);
    j.sampling.n_top_logprobs = 20; // slower
    enqueue(&j);
    assert_true(wait_tokens(j.id, 2, 5000));
    stop_run(&j, letterbox_find(&m, j.id)->run + 1); // another run of it goes on
    stop_run(&j, letterbox_find(&m, j.id)->run);
    enqueue(&k);
    assert_true(letterbox_wait_last(&m, k.id, 1, 10000));
    letterbox_read(&m);
    assert_true(letterbox_find(&m, j.id)->choices[0].n < 100);
    assert_int_equal(letterbox_find(&m, j.id)->choices[0].flags & REPLY_LAST, 0);
}

static void a_gateway_without_a_lease_loses_its_runs(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 100), k;
    letterbox other;
    enqueue(&j);
    assert_true(wait_tokens(j.id, 1, 5000));
    letterbox_end(&m);
    letterbox_open(&other, test_redis()->address, 5000);
    k = letterbox_job(&other, 2, prompt, 5, 10);
    enqueue(&k);
    assert_true(letterbox_wait_last(&other, k.id, 1, 10000));
    letterbox_close(&other);
    letterbox_read(&m);
    assert_true(letterbox_find(&m, j.id)->choices[0].n < 100);
}

// ---- jobs it does not take

static void a_job_of_another_model_or_length_is_refused(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 10);
    int32_t many[TINY_CONTEXT] = {0};
    job k = letterbox_job(&m, 3, many, TINY_CONTEXT, 10);
    strcpy(j.model, "other");
    job *const bad[] = {&j, &k};
    for (int i = 0; i < 2; i++) {
        enqueue(bad[i]);
        assert_true(letterbox_wait_last(&m, bad[i]->id, 1, 5000));
        assert_int_equal(letterbox_find(&m, bad[i]->id)->n_refused, 1);
        assert_int_equal(letterbox_find(&m, bad[i]->id)->n_claims, 0);
    }
}

// Redelivering it helps nobody, and the base model's answer would be a wrong one.
static void a_job_whose_adapter_is_not_there_fails(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 10);
    strcpy(j.adapter, "mine-0123456789abcdef");
    enqueue(&j);
    assert_true(letterbox_wait_last(&m, j.id, 1, 5000));
    const told *t = letterbox_find(&m, j.id);
    assert_int_equal(t->n_claims, 1);
    assert_int_equal(t->n_refused, 0);
    assert_int_equal(t->choices[0].flags & (REPLY_FAILED | REPLY_LAST), REPLY_FAILED | REPLY_LAST);
    assert_int_equal(t->choices[0].n, 0);
}

// A job whose adapter's file is a FIFO, so that it is loaded as long as the test likes.
static job slow_job(int number, char *path) {
    char dir[128];
    err e = {0};
    job j = letterbox_job(&m, number, prompt, 5, 10);
    snprintf(j.adapter, sizeof j.adapter, "slow%d-0123456789abcdef", number);
    snprintf(dir, sizeof dir, "%s/adapters/" TENANT, test_dir());
    assert_int_equal(file_mkdirs(dir, 0700, &e), 0);
    snprintf(path, 256, "%s/%s.gguf", dir, j.adapter);
    assert_int_equal(mkfifo(path, 0600), 0);
    return j;
}

static void end_slow(const char *path) { // with a file that is none
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    unlink(path);
}

static bool wait_claim(const job *j) {
    for (int i = 0; i < 1000; i++, clock_sleep_ms(5)) {
        letterbox_read(&m);
        if (letterbox_find(&m, j->id)->n_claims)
            return true;
    }
    return false;
}

static void jobs_are_answered_while_an_adapter_is_loaded(void **state) {
    (void)state;
    char path[256];
    job slow = slow_job(1, path);
    enqueue(&slow);
    assert_true(wait_claim(&slow));
    for (int i = 2; i < 5; i++) {
        job j = letterbox_job(&m, i, prompt, 40, 20);
        enqueue(&j);
        assert_true(letterbox_wait_last(&m, j.id, 1, 10000));
        assert_int_equal(letterbox_find(&m, j.id)->choices[0].n, 20);
    }
    assert_int_equal(letterbox_find(&m, slow.id)->choices[0].flags & REPLY_LAST, 0);
    end_slow(path);
    assert_true(letterbox_wait_last(&m, slow.id, 1, 10000));
    assert_true(letterbox_find(&m, slow.id)->choices[0].flags & REPLY_FAILED);
}

static void a_run_can_be_cancelled_while_its_adapter_is_loaded(void **state) {
    (void)state;
    char path[256];
    job slow = slow_job(1, path), j = letterbox_job(&m, 2, prompt, 5, 3);
    enqueue(&slow);
    assert_true(wait_claim(&slow));
    assert_true(wait_metric("tiergate_worker_waiting", 1));
    stop_run(&slow, 0);
    assert_true(wait_metric("tiergate_worker_waiting", 0));
    end_slow(path);
    enqueue(&j);
    assert_true(letterbox_wait_last(&m, j.id, 1, 10000));
    assert_int_equal(letterbox_find(&m, slow.id)->choices[0].flags & REPLY_LAST, 0);
}

static void a_drained_worker_gives_back_what_waits_for_its_adapter(void **state) {
    (void)state;
    char path[256];
    job slow = slow_job(1, path);
    enqueue(&slow);
    assert_true(wait_claim(&slow));
    kill(worker, SIGTERM);
    assert_true(letterbox_wait_last(&m, slow.id, 1, 10000)); // before the load ends
    assert_int_equal(letterbox_find(&m, slow.id)->n_refused, 1);
    end_slow(path);
    assert_int_equal(wait_end(10000), 0);
}

static void a_job_that_is_gone_or_not_ours_is_passed_over(void **state) {
    (void)state;
    job gone = letterbox_job(&m, 1, prompt, 5, 10), foreign = letterbox_job(&m, 2, prompt, 5, 10),
        good = letterbox_job(&m, 3, prompt, 5, 10);
    enqueue_entry(&gone, LANE_INTERACTIVE);
    put_payload(&foreign, "no sealed job", 13);
    enqueue_entry(&foreign, LANE_INTERACTIVE);
    enqueue(&good);
    assert_true(letterbox_wait_last(&m, good.id, 1, 5000));
    assert_int_equal(letterbox_find(&m, gone.id)->n_claims, 0);
    assert_int_equal(letterbox_find(&m, foreign.id)->n_claims, 0);
    assert_int_equal(waiting(), 0);
}

// ---- ends

static void an_idle_worker_ends_at_once(void **state) {
    (void)state;
    int64_t begun = clock_mono_ms();
    kill(worker, SIGTERM);
    assert_int_equal(wait_end(5000), 0);
    assert_in_range(clock_mono_ms() - begun, 0, 2000);
}

static void a_drained_worker_finishes_what_it_began_and_gives_the_rest_back(void **state) {
    (void)state;
    job j[4];
    for (int i = 0; i < 4; i++)
        j[i] = letterbox_job(&m, i + 1, prompt, 5, 100);
    for (int i = 0; i < 4; i++)
        enqueue(&j[i]);
    assert_true(wait_tokens(j[1].id, 2, 5000));
    kill(worker, SIGTERM);
    assert_int_equal(wait_end(20000), 0);
    letterbox_read(&m);
    int done = 0, refused = 0;
    for (int i = 0; i < 4; i++) {
        const told *t = letterbox_find(&m, j[i].id);
        done += t->choices[0].n == 100 && t->choices[0].flags & REPLY_LAST;
        refused += t->n_refused;
    }
    assert_in_range(done, 2, 4);
    assert_int_equal(done + refused + (int)waiting(), 4); // nobody is forgotten
}

static void a_second_signal_ends_it_now(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 100);
    j.sampling.n_top_logprobs = 20;
    enqueue(&j);
    assert_true(wait_tokens(j.id, 1, 5000));
    kill(worker, SIGSTOP);
    kill(worker, SIGTERM);
    kill(worker, SIGINT);
    kill(worker, SIGCONT);
    assert_int_equal(wait_end(5000), 0);
}

// ---- Redis goes and comes

static void it_goes_on_after_redis_was_restarted_empty(void **state) {
    (void)state;
    job j = letterbox_job(&m, 1, prompt, 5, 100), k = letterbox_job(&m, 2, prompt, 5, 10);
    uint64_t gateway = m.gateway;
    enqueue(&j);
    assert_true(wait_tokens(j.id, 1, 5000));
    test_server_kill(test_redis(), SIGKILL);
    letterbox_close(&m);
    clock_sleep_ms(500);
    test_server_start(test_redis());
    letterbox_open(&m, test_redis()->address, gateway + 500);
    k.gateway = m.gateway;
    err e = {0};
    assert_int_equal(queue_prepare(m.r, &e), 0);
    enqueue(&k);
    assert_true(letterbox_wait_last(&m, k.id, 1, 10000));
    assert_int_equal(letterbox_find(&m, k.id)->choices[0].n, 10);
}

int main(void) {
#define WORKER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WORKER(it_says_when_it_is_ready),
        WORKER(a_job_is_claimed_and_answered),
        WORKER(many_jobs_are_answered_like_each_alone),
        WORKER(a_worker_takes_its_slots_and_one_more),
        WORKER(a_bell_brings_work_at_once),
        WORKER(a_slot_that_frees_is_filled_at_once),
        WORKER(a_tenant_finds_its_own_prompts_and_no_others),
        WORKER(a_cancelled_run_stops_and_says_no_more),
        WORKER(a_gateway_without_a_lease_loses_its_runs),
        WORKER(a_job_of_another_model_or_length_is_refused),
        WORKER(a_job_whose_adapter_is_not_there_fails),
        WORKER(jobs_are_answered_while_an_adapter_is_loaded),
        WORKER(a_run_can_be_cancelled_while_its_adapter_is_loaded),
        WORKER(a_drained_worker_gives_back_what_waits_for_its_adapter),
        WORKER(a_job_that_is_gone_or_not_ours_is_passed_over),
        WORKER(an_idle_worker_ends_at_once),
        WORKER(a_drained_worker_finishes_what_it_began_and_gives_the_rest_back),
        WORKER(a_second_signal_ends_it_now),
        WORKER(it_goes_on_after_redis_was_restarted_empty),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

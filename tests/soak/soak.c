// The soak's start and verdict. Without a URL it forks a server of the echo application (built in
// the same mode: MODE=asan or tsan) and afterwards asks it whether anything was left behind. Exits
// 0 when every client that behaved well was answered, the server still serves, and it ended without
// a sanitizer's finding.
#include "tests/soak/soak.h"
#include "tests/support/http_stage.h"
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define TICK_MS 20
#define MOST_SHAKING 200 // more would only wait in the server's backlog
#define OPENS_A_TICK 40
#define REPORT_MS 10000
#define LAST_REQUESTS 20
#define MOST_HOLD_MS 60000 // below the server's idle time

typedef struct options {
    const char *url, *key, *ca, *model;
    int connections, seconds, plain;
} options;

// ---- the server of its own

typedef struct own_server {
    pid_t pid;
    int command_fd;   // closed: end and judge
    http_stage stage; // for the client's side: directory and paths
} own_server;

// In the child: serves until the command descriptor ends, then looks for what was left.
static int serve(int ready_fd, int command_fd, bool is_tls) {
    http_stage s;
    char byte;
    http_options o = echo_options();
    o.n_reactors = 2;
    o.max_connections = 8000;
    o.head_ms = 10000;
    o.stall_ms = 5000;
    stage_open(&s, o, is_tls);
    if (write(ready_fd, &s, sizeof s) != sizeof s)
        return 1;
    while (read(command_fd, &byte, 1) > 0)
        ;
    int left = 0;
    for (int i = 0; i < 200 && (left = http_open_exchanges(s.server)) > 0; i++)
        clock_sleep_ms(100);
    fprintf(stderr, "soak: server heard %d requests, %d clients gone, %d exchanges left\n",
            atomic_load(&echo_seen.requests), atomic_load(&echo_seen.gone), left);
    stage_close(&s);
    return left ? 1 : 0;
}

static void start_own(own_server *own, bool is_tls) {
    int ready[2], command[2];
    if (pipe(ready) || pipe(command))
        fatal("soak: no pipe");
    own->pid = fork();
    if (own->pid < 0)
        fatal("soak: no process");
    if (own->pid == 0) {
        close(ready[0]);
        close(command[1]);
        exit(serve(ready[1], command[0], is_tls));
    }
    close(ready[1]);
    close(command[0]);
    own->command_fd = command[1];
    if (read(ready[0], &own->stage, sizeof own->stage) != sizeof own->stage)
        fatal("soak: the server did not start");
    close(ready[0]);
}

static int end_own(own_server *own) {
    int status = 0;
    close(own->command_fd);
    waitpid(own->pid, &status, 0);
    if (status)
        fprintf(stderr, "soak: the server ended with status %#x\n", (unsigned)status);
    return status ? 1 : 0;
}

// ---- the clients

uint32_t soak_random(soak *s, uint32_t below) { // splitmix64
    uint64_t z = (s->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return below ? (uint32_t)((z ^ (z >> 31)) % below) : 0;
}

static void fill_up(void *ctx) {
    soak *s = ctx;
    for (int i = 0; i < OPENS_A_TICK && s->counts.open < s->n_wanted; i++) {
        if (s->counts.shaking >= MOST_SHAKING)
            return;
        peer_open(s);
    }
}

static int keep_session(SSL *ssl, SSL_SESSION *session) {
    soak *s = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    SSL_SESSION_free(s->session);
    s->session = session;
    return 1;
}

static void keep_sessions(soak *s) {
    if (!s->target.tls)
        return;
    SSL_CTX_set_app_data(s->target.tls, s);
    SSL_CTX_set_session_cache_mode(s->target.tls,
                                   SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(s->target.tls, keep_session);
}

static void report(void *ctx) {
    const soak *s = ctx;
    fprintf(stderr, "soak: %d open (most %d), %ld answered, %ld refused, %ld broken;",
            s->counts.open, s->counts.most_open, s->counts.answers, s->counts.refused,
            s->counts.broken);
    for (int i = 0; i < N_ACTS; i++)
        fprintf(stderr, " %s %ld", peer_act_name((soak_act)i), s->counts.done[i]);
    fprintf(stderr, "\n");
}

static void end_loop(void *ctx) {
    soak *s = ctx;
    s->is_ending = true;
    loop_stop(s->loop);
}

// Its sockets end with the process of the clients, all at once: one more thing the server must
// bear.
static int run_clients(soak *s, int seconds) {
    keep_sessions(s);
    s->hold_ms = seconds * 500 < MOST_HOLD_MS ? seconds * 500 : MOST_HOLD_MS;
    s->loop = loop_new();
    s->full_ms = loop_now_ms(s->loop) + s->hold_ms;
    loop_timer_add(s->loop, TICK_MS, true, fill_up, s);
    loop_timer_add(s->loop, REPORT_MS, true, report, s);
    loop_timer_add(s->loop, seconds * 1000, false, end_loop, s);
    loop_run(s->loop);
    report(s);
    if (s->counts.broken)
        fprintf(stderr, "soak: %ld clients that behaved well were not answered\n",
                s->counts.broken);
    return s->counts.broken || s->counts.answers == 0 ? 1 : 0;
}

static int clients_in_child(soak *s, int seconds) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0)
        exit(run_clients(s, seconds));
    waitpid(pid, &status, 0);
    return status ? 1 : 0;
}

// The server still serves: short requests, one after the other, each within the wire's limit.
static int ask_at_last(soak *s) {
    int n_good = 0;
    for (int i = 0; i < LAST_REQUESTS; i++) {
        wire w;
        buf request = {0};
        ask_short(s, &request);
        uint16_t port = (uint16_t)atoi(s->target.port);
        if (wire_connect(&w, port, s->target.tls, 0) == 0 &&
            wire_send(&w, request.data, request.len) == 0)
            n_good += wire_answer(&w, NULL) == 200;
        wire_close(&w);
        buf_release(&request);
    }
    fprintf(stderr, "soak: %d of %d last requests answered\n", n_good, LAST_REQUESTS);
    return n_good == LAST_REQUESTS ? 0 : 1;
}

// ---- options

static int number_of(const char *name, int otherwise) {
    const char *v = getenv(name);
    return v && *v ? atoi(v) : otherwise;
}

static const char *text_of(const char *name) {
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static options read_options(int n, char **args) {
    static const struct option known[] = {{"url", 1, NULL, 'u'},         {"key", 1, NULL, 'k'},
                                          {"ca", 1, NULL, 'c'},          {"model", 1, NULL, 'm'},
                                          {"seconds", 1, NULL, 's'},     {"plain", 0, NULL, 'p'},
                                          {"connections", 1, NULL, 'n'}, {NULL, 0, NULL, 0}};
    options o = {text_of("SOAK_URL"),
                 text_of("SOAK_KEY"),
                 text_of("SOAK_CA"),
                 text_of("SOAK_MODEL"),
                 number_of("SOAK_CONNECTIONS", 4000),
                 number_of("SOAK_SECONDS", 120),
                 number_of("SOAK_PLAIN", 0)};
    for (int c; (c = getopt_long(n, args, "", known, NULL)) != -1;) {
        switch (c) {
        case 'u':
            o.url = optarg;
            break;
        case 'k':
            o.key = optarg;
            break;
        case 'c':
            o.ca = optarg;
            break;
        case 'm':
            o.model = optarg;
            break;
        case 's':
            o.seconds = atoi(optarg);
            break;
        case 'n':
            o.connections = atoi(optarg);
            break;
        case 'p':
            o.plain = 1;
            break;
        default:
            fatal(
                "soak: --url https://HOST:PORT/v1 --key KEY --ca FILE --model ID, or none of them;"
                " --connections N --seconds N --plain");
        }
    }
    if (o.url && (!o.key || !o.model))
        fatal("soak: a gateway's URL needs a key and a model");
    return o;
}

static void aim_at_url(soak_target *t, const options *o) {
    t->is_tls = strncmp(o->url, "https://", 8) == 0;
    const char *host = strstr(o->url, "://");
    if (!host || sscanf(host + 3, "%127[^:/]:%7[0-9]%127s", t->host, t->port, t->prefix) < 2)
        fatal("soak: %s is not http(s)://HOST:PORT/PREFIX", o->url);
    t->key = o->key;
    t->model = o->model;
    t->tls = t->is_tls ? stage_client(o->ca) : NULL;
}

static void aim_at_own(soak_target *t, const own_server *own) {
    t->is_tls = own->stage.is_tls;
    strcpy(t->host, "127.0.0.1");
    snprintf(t->port, sizeof t->port, "%u", own->stage.port);
    t->tls = t->is_tls ? stage_client(own->stage.paths.ca) : NULL;
}

static void raise_descriptor_limit(int connections) {
    struct rlimit limit = {0};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < (rlim_t)connections * 3 + 512) // the server of its own needs three each
        fatal("soak: %d connections need %d file descriptors, %llu are allowed", connections,
              connections * 3 + 512, (unsigned long long)limit.rlim_cur);
}

int main(int n, char **args) {
    options o = read_options(n, args);
    own_server own = {0};
    soak s = {.n_wanted = o.connections, .random = (uint64_t)number_of("SOAK_SEED", (int)getpid())};
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit(o.connections);
    fprintf(stderr, "soak: %d connections, %d s, SOAK_SEED=%llu\n", o.connections, o.seconds,
            (unsigned long long)s.random);
    if (o.url) {
        aim_at_url(&s.target, &o);
    } else {
        start_own(&own, !o.plain);
        aim_at_own(&s.target, &own);
    }
    struct addrinfo wanted = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    if (getaddrinfo(s.target.host, s.target.port, &wanted, &s.target.address))
        fatal("soak: %s is unknown", s.target.host);
    int failed = clients_in_child(&s, o.seconds);
    clock_sleep_ms(2000);
    failed |= ask_at_last(&s);
    if (own.pid)
        failed |= end_own(&own);
    freeaddrinfo(s.target.address);
    SSL_CTX_free(s.target.tls);
    fprintf(stderr, "soak: %s\n", failed ? "FAILED" : "passed");
    return failed;
}

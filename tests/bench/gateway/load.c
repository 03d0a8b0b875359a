// load: asks a chat API on loopback and tells, as one line of JSON, how long the answers took.
// Closed loop (each connection asks again when it is answered) or, with --rate, open loop: requests
// are due at even intervals whatever the server does, and their time counts from when they were
// due. With --stream every connection reads one long stream; then "ready" is printed when all of
// them have had a token, and for
// --seconds the way of each token is timed by the clock in its text (token.h). The key is in the
// environment, TIERGATE_BENCH_KEY. One thread, one loop; connections are made one by one, before
// the time that counts.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/loop.h"
#include "tests/bench/gateway/token.h"

#define OPENS_A_TURN 2 // a turn each 5 ms: 400 connections a second
#define OPEN_MS 5
#define SCRATCH 65536

typedef struct times { // microseconds
    uint32_t *us;
    size_t n, cap;
} times;

typedef struct client {
    struct client *next; // in load.idle
    int fd;
    SSL *ssl;
    loop_io *io;
    buf in;
    int64_t due_ns; // of the request under way; 0: idle
    long left;      // bytes of the body still to come; -1: in chunks
    bool in_body, has_token;
} client;

typedef struct load {
    int port, n_connections;
    bool is_tls, is_stream;
    double rate, seconds, warmup;
    long n_most; // requests; 0: no end but time
    buf head_fields;
    const char *path, *model;
    int max_tokens;

    loop *loop;
    SSL_CTX *tls;
    buf request;
    client *clients, *idle;
    int n_open, n_with_token;
    int64_t start_ns, next_ns; // start of the warm-up; when the next request is due
    bool is_timed, is_over;    // warm-up, all is over: what was asked is still waited for
    long asked, answers, errors, tokens;
    times latency, token_latency;
} load;

static load w = {.path = "/v1/chat/completions",
                 .model = "bench",
                 .n_connections = 16,
                 .seconds = 3,
                 .warmup = 0.5,
                 .max_tokens = ANSWER_TOKENS};

// ---- times

static void note_time(times *t, int64_t ns) {
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 65536;
        t->us = realloc(t->us, t->cap * sizeof *t->us);
        if (!t->us)
            fatal("out of memory for times");
    }
    t->us[t->n++] = (uint32_t)(ns / 1000);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, times *t) {
    if (t->n == 0)
        return;
    qsort(t->us, t->n, sizeof *t->us, by_value);
    printf(",\"%s_p50_us\":%u,\"%s_p99_us\":%u,\"%s_max_us\":%u", name, t->us[t->n / 2], name,
           t->us[t->n * 99 / 100], name, t->us[t->n - 1]);
}

static void finish(void) {
    double seconds = (double)(bench_now_ns() - w.start_ns) / 1e9;
    printf("{\"asked\":%ld,\"answers\":%ld,\"errors\":%ld,\"tokens\":%ld,\"seconds\":%.3f", w.asked,
           w.answers, w.errors, w.tokens, seconds);
    print_times("answer", &w.latency);
    print_times("token", &w.token_latency);
    puts("}");
    fflush(stdout);
    _exit(0); // streams end as those of vanishing clients
}

// ---- one connection

static ssize_t get(client *c, char *p, size_t n) {
    if (!c->ssl)
        return recv(c->fd, p, n, 0);
    int r = SSL_read(c->ssl, p, (int)n);
    if (r > 0)
        return r;
    errno = SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_READ ? EAGAIN : EIO;
    return -1;
}

static void ask(client *c, int64_t due_ns) {
    size_t n = w.request.len;
    c->due_ns = due_ns;
    c->in_body = false;
    w.asked++;
    ssize_t sent = c->ssl ? SSL_write(c->ssl, w.request.data, (int)n)
                          : send(c->fd, w.request.data, n, MSG_NOSIGNAL);
    if (sent != (ssize_t)n)
        fatal("a request was not taken");
}

static bool has_more(void) { return !w.is_over && (!w.n_most || w.asked < w.n_most); }

static void go_on(client *c) {
    int64_t now = bench_now_ns();
    c->due_ns = 0;
    if (!has_more() && w.answers == w.asked)
        finish();
    if (w.rate > 0 || !has_more()) {
        c->next = w.idle;
        w.idle = c;
    } else {
        ask(c, now);
    }
}

static void answered(client *c) {
    w.answers++;
    if (w.is_timed && !w.is_stream)
        note_time(&w.latency, bench_now_ns() - c->due_ns);
    go_on(c);
}

static void start_timing(void *ctx) {
    (void)ctx;
    w.is_timed = true;
}

static void end_timing(void *ctx) {
    (void)ctx;
    w.is_over = true;
    if (w.is_stream || w.answers == w.asked)
        finish();
}

static void count_stream(client *c) {
    if (c->has_token)
        return;
    c->has_token = true;
    if (++w.n_with_token == w.n_connections) {
        puts("ready");
        fflush(stdout);
        loop_timer_add(w.loop, (int)(w.warmup * 1000), false, start_timing, NULL);
        loop_timer_add(w.loop, (int)((w.warmup + w.seconds) * 1000), false, end_timing, NULL);
    }
}

// Tokens of an event or a body: "t and 19 digits.
static void take_tokens(client *c, const char *p, size_t n) {
    static const char sign[] = "\"content\":\"t";
    const char *end = p + n;
    while ((p = memmem(p, (size_t)(end - p), sign, sizeof sign - 1)) &&
           end - p > (long)sizeof sign + TOKEN_CHARS) {
        p += sizeof sign - 1;
        w.tokens++;
        if (w.is_stream) {
            int64_t made = strtoll(p, NULL, 10);
            if (w.is_timed)
                note_time(&w.token_latency, bench_now_ns() - made);
            count_stream(c);
        }
    }
}

// ---- answers: HTTP/1.1 with a length or in chunks

static bool take_head(client *c) {
    char *end = c->in.len ? memmem(c->in.data, c->in.len, "\r\n\r\n", 4) : NULL;
    if (!end)
        return false;
    size_t n = (size_t)(end - c->in.data) + 4;
    end[2] = '\0';
    if (strncmp(c->in.data, "HTTP/1.1 200", 12) != 0) {
        w.errors++;
        fprintf(stderr, "load: %.400s\n%.*s\n", c->in.data, (int)(c->in.len - n), c->in.data + n);
    }
    const char *length = strcasestr(c->in.data, "content-length:");
    c->left = length ? strtol(length + 15, NULL, 10) : -1;
    c->in_body = true;
    buf_consume(&c->in, n);
    return true;
}

// The length of the chunk at p with its frame; 0: it is not whole. *last: it ends the body.
static size_t chunk_bytes(const buf *b, size_t *data, bool *last) {
    char *end = b->len ? memchr(b->data, '\n', b->len) : NULL;
    if (!end)
        return 0;
    size_t n = strtoul(b->data, NULL, 16), head = (size_t)(end - b->data) + 1;
    *data = head;
    *last = n == 0;
    return head + n + 2 <= b->len ? head + n + 2 : 0;
}

static bool take_body(client *c) {
    size_t n, data = 0;
    bool last = true;
    if (c->left >= 0)
        n = (size_t)c->left <= c->in.len ? (size_t)c->left : 0;
    else
        n = chunk_bytes(&c->in, &data, &last);
    if (n == 0)
        return false;
    take_tokens(c, c->in.data + data, n - data);
    buf_consume(&c->in, n);
    if (last) {
        c->in_body = false;
        answered(c);
    }
    return true;
}

static void on_readable(void *ctx, uint32_t events) {
    (void)events;
    client *c = ctx;
    char scratch[SCRATCH];
    for (;;) {
        ssize_t n = get(c, scratch, sizeof scratch);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            fatal("the server closed a connection after %ld answers", w.answers);
        buf_put(&c->in, scratch, (size_t)n);
        while (c->in_body ? take_body(c) : take_head(c))
            ;
        if (!c->ssl && n < (ssize_t)sizeof scratch)
            return;
    }
}

static void open_client(client *c) {
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)w.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a))
        fatal("cannot connect to port %d: %s", w.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (w.is_tls) {
        c->ssl = SSL_new(w.tls);
        if (!c->ssl || SSL_set_fd(c->ssl, c->fd) != 1 || SSL_connect(c->ssl) != 1)
            fatal("no TLS with port %d", w.port);
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->io = loop_io_add(w.loop, c->fd, EPOLLIN, on_readable, c);
}

// ---- the course of it

static void on_due(void *ctx, uint32_t events) {
    (void)events;
    uint64_t count;
    ssize_t got = read(*(int *)ctx, &count, sizeof count);
    (void)got;
    int64_t now = bench_now_ns();
    while (w.next_ns <= now && w.idle && has_more()) { // who finds no idle connection waits for one
        client *c = w.idle;
        w.idle = c->next;
        ask(c, w.next_ns);
        w.next_ns += (int64_t)(1e9 / w.rate);
    }
}

static void start_open_loop(void) {
    static int fd;
    int64_t gap = (int64_t)(1e9 / w.rate);
    struct itimerspec every = {.it_interval = {gap / 1000000000, gap % 1000000000},
                               .it_value = {0, 1}};
    fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0 || timerfd_settime(fd, 0, &every, NULL) ||
        !loop_io_add(w.loop, fd, EPOLLIN, on_due, &fd))
        fatal("no timer: %s", strerror(errno));
    w.next_ns = bench_now_ns();
}

static void start(void) {
    w.start_ns = bench_now_ns();
    for (int i = 0; i < w.n_connections; i++) {
        w.clients[i].next = w.idle;
        w.idle = &w.clients[i];
    }
    if (w.rate > 0) {
        start_open_loop();
    } else {
        client *c = w.idle;
        w.idle = NULL;
        for (client *next; c; c = next) {
            next = c->next;
            go_on(c);
        }
    }
    loop_timer_add(w.loop, (int)(w.warmup * 1000), false, start_timing, NULL);
    if (!w.n_most)
        loop_timer_add(w.loop, (int)((w.warmup + w.seconds) * 1000), false, end_timing, NULL);
}

static void open_some(void *ctx) {
    (void)ctx;
    for (int i = 0; i < OPENS_A_TURN && w.n_open < w.n_connections; i++) {
        client *c = &w.clients[w.n_open++];
        open_client(c);
        if (w.is_stream)
            ask(c, bench_now_ns());
    }
    if (w.n_open < w.n_connections)
        loop_timer_add(w.loop, OPEN_MS, false, open_some, NULL);
    else if (!w.is_stream)
        start();
}

// ---- the request

static void make_request(void) {
    buf body = {0};
    const char *key = getenv("TIERGATE_BENCH_KEY");
    buf_printf(&body,
               "{\"model\":\"%s\",\"max_tokens\":%d,\"stream\":%s,\"messages\":[{\"role\":\"user\","
               "\"content\":\"Say something.\"}]}",
               w.model, w.max_tokens, w.is_stream ? "true" : "false");
    buf_printf(&w.request,
               "POST %s HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: "
               "application/json\r\nContent-Length: %zu\r\n",
               w.path, w.port, body.len);
    buf_printf(&w.request, "Authorization: Bearer %s\r\n", key ? key : "none");
    if (w.head_fields.len)
        buf_puts(&w.request, w.head_fields.data);
    buf_printf(&w.request, "\r\n%s", body.data);
    buf_release(&body);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, NULL, 'p'},     {"tls", 0, NULL, 't'},     {"connections", 1, NULL, 'c'},
        {"rate", 1, NULL, 'r'},     {"seconds", 1, NULL, 's'}, {"warmup", 1, NULL, 'w'},
        {"requests", 1, NULL, 'n'}, {"stream", 0, NULL, 'e'},  {"tokens", 1, NULL, 'm'},
        {"header", 1, NULL, 'h'},   {"model", 1, NULL, 'o'},   {NULL, 0, NULL, 0}};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (o) {
        case 'p':
            w.port = atoi(optarg);
            break;
        case 't':
            w.is_tls = true;
            break;
        case 'c':
            w.n_connections = atoi(optarg);
            break;
        case 'r':
            w.rate = atof(optarg);
            break;
        case 's':
            w.seconds = atof(optarg);
            break;
        case 'w':
            w.warmup = atof(optarg);
            break;
        case 'n':
            w.n_most = atol(optarg);
            break;
        case 'e':
            w.is_stream = true;
            break;
        case 'm':
            w.max_tokens = atoi(optarg);
            break;
        case 'o':
            w.model = optarg;
            break;
        case 'h':
            buf_printf(&w.head_fields, "%s\r\n", optarg);
            break;
        default:
            exit(2);
        }
    if (w.port < 1 || w.n_connections < 1)
        fatal("load: --port and --connections are needed");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    make_request();
    w.loop = loop_new();
    w.tls = SSL_CTX_new(TLS_client_method());
    w.clients = calloc((size_t)w.n_connections, sizeof *w.clients);
    if (!w.tls || !w.clients)
        fatal("out of memory");
    loop_timer_add(w.loop, 0, false, open_some, NULL);
    loop_run(w.loop);
    return 0;
}

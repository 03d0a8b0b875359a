// mock PORT_FILE GAP_MS: an OpenAI-like upstream that computes nothing. A chat is answered at once
// with one token's text; a streamed one gets an event every GAP_MS, max_tokens of them. HTTP/1.1 on
// loopback, port chosen by the kernel and written to PORT_FILE. One thread, one loop. A developer's
// tool: what it does not understand ends it.
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/loop.h"
#include "tests/bench/gateway/token.h"

#define META "\"created\":1700000000,\"model\":\"bench\",\"system_fingerprint\":\"mock\","

typedef struct client {
    int fd;
    loop_io *io;
    loop_timer *pace; // while it streams
    int left;         // events of its stream still to come
    buf in;
} client;

static loop *l;
static int gap_ms;

static void drop(client *c) {
    loop_timer_remove(l, c->pace);
    loop_io_remove(l, c->io);
    close(c->fd);
    buf_release(&c->in);
    free(c);
}

static void send_all(client *c, const buf *b) {
    if (send(c->fd, b->data, b->len, MSG_NOSIGNAL) != (ssize_t)b->len)
        shutdown(c->fd, SHUT_RDWR); // its end is read next
}

static void put_chunk(buf *out, const char *event) {
    buf_printf(out, "%zx\r\n%s\r\n", strlen(event), event);
}

static void send_event(void *ctx) {
    client *c = ctx;
    char token[TOKEN_CHARS + 1], event[512];
    buf out = {0};
    bench_put_token(token);
    bool is_last = --c->left == 0;
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\"," META
             "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,"
             "\"finish_reason\":%s}]}\n\n",
             token, is_last ? "\"length\"" : "null");
    put_chunk(&out, event);
    if (is_last) {
        put_chunk(&out, "data: [DONE]\n\n");
        buf_puts(&out, "0\r\n\r\n");
        loop_timer_remove(l, c->pace);
        c->pace = NULL;
    }
    send_all(c, &out);
    buf_release(&out);
}

static void start_stream(client *c, int n) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    send_all(c, &(buf){.data = (char *)(uintptr_t)head, .len = sizeof head - 1});
    c->left = n;
    c->pace = loop_timer_add(l, gap_ms, true, send_event, c);
}

static void answer(client *c) {
    char token[TOKEN_CHARS + 1], body[512];
    buf out = {0};
    bench_put_token(token);
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\"," META
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
             "\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":12,"
             "\"completion_tokens\":%d,\"total_tokens\":%d}}",
             token, ANSWER_TOKENS, 12 + ANSWER_TOKENS);
    buf_printf(&out,
               "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
               strlen(body), body);
    send_all(c, &out);
    buf_release(&out);
}

static long number_after(const char *text, const char *name, long otherwise) {
    const char *at = strcasestr(text, name);
    return at ? strtol(at + strlen(name), NULL, 10) : otherwise;
}

// Requests that are whole. A proxy may send its body in chunks: then it ends with an empty one.
static void take_requests(client *c) {
    for (;;) {
        char *end = c->in.len ? strstr(c->in.data, "\r\n\r\n") : NULL;
        if (!end)
            return;
        size_t head = (size_t)(end - c->in.data) + 4, n;
        *end = '\0';
        bool is_chunked = strcasestr(c->in.data, "transfer-encoding: chunked") != NULL;
        long length = number_after(c->in.data, "content-length:", 0);
        *end = '\r';
        const char *last = is_chunked ? strstr(c->in.data + head, "0\r\n\r\n") : NULL;
        n = is_chunked ? (last ? (size_t)(last - c->in.data) + 5 : SIZE_MAX)
                       : head + (size_t)length;
        if (n > c->in.len)
            return;
        if (strstr(c->in.data + head, "\"stream\":true"))
            start_stream(c, (int)number_after(c->in.data + head, "\"max_tokens\":", 16));
        else
            answer(c);
        buf_consume(&c->in, n);
        if (c->in.len)
            c->in.data[c->in.len] = '\0';
    }
}

static void on_client(void *ctx, uint32_t events) {
    (void)events;
    client *c = ctx;
    char scratch[65536];
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    buf_put(&c->in, scratch, (size_t)n);
    take_requests(c);
}

static void on_listener(void *ctx, uint32_t events) {
    (void)events;
    int one = 1, fd = accept4(*(int *)ctx, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    client *c = calloc(1, sizeof *c);
    if (!c)
        fatal("out of memory for a client");
    c->fd = fd;
    c->io = loop_io_add(l, fd, EPOLLIN, on_client, c);
}

static int listen_anywhere(const char *port_file) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) || listen(fd, 4096) ||
        getsockname(fd, (struct sockaddr *)&a, &n))
        fatal("cannot listen: %s", strerror(errno));
    FILE *f = fopen(port_file, "w");
    if (!f || fprintf(f, "%d\n", ntohs(a.sin_port)) < 0 || fclose(f))
        fatal("cannot write %s", port_file);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 3)
        fatal("usage: mock PORT_FILE GAP_MS");
    signal(SIGPIPE, SIG_IGN);
    gap_ms = atoi(argv[2]);
    l = loop_new();
    int fd = listen_anywhere(argv[1]);
    if (!loop_io_add(l, fd, EPOLLIN, on_listener, &fd))
        fatal("cannot watch the listener");
    loop_run(l);
    return 0;
}

// chaos_proxy NAME=LISTEN=TARGET ...: carries bytes between unix sockets and misbehaves on command.
// One thread, one poll loop; owns every connection until either side ends. Commands are lines on
// stdin, each is answered by `ok` on stdout; at the end of stdin it ends:
//
//   cut NAME          closes all connections of the link
//   refuse NAME MS    cut, and for MS every new connection is closed at once
//   stall NAME MS     for MS nothing is carried, in neither direction; then it goes on
//   swallow NAME TEXT the next connection whose client sends TEXT is cut when the server answers
//                     it, and the answer is thrown away: done, but nobody knows
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LINKS_MOST 16
#define PAIRS_MOST 1024
#define PIPE_BYTES 65536

typedef struct link_ {
    char name[32], listen[108], target[108], swallow[64];
    int fd;
    int64_t refuse_until_ms, stall_until_ms;
} link_;

typedef struct stream { // one direction: read from one side, not yet written to the other
    size_t n, at;
    bool is_ended; // the reader said so, and the writer was told
    char bytes[PIPE_BYTES];
} stream;

typedef struct pair {
    link_ *of;
    int fd[2];     // 0 client, 1 server
    stream out[2]; // out[i] was read from fd[i]
    bool swallows;
} pair;

static link_ links[LINKS_MOST];
static int n_links;
static pair *pairs[PAIRS_MOST];
static int n_pairs;

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void die(const char *what, const char *name) {
    fprintf(stderr, "chaos_proxy: %s: %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        die("path too long", path);
    memcpy(a.sun_path, path, strlen(path));
    return a;
}

// ---- links

static void link_add(char *text) {
    link_ *l = &links[n_links];
    const char *name = strsep(&text, "="), *listen_at = strsep(&text, "=");
    if (n_links == LINKS_MOST || !listen_at || !text)
        die("not NAME=LISTEN=TARGET", name);
    snprintf(l->name, sizeof l->name, "%s", name);
    snprintf(l->listen, sizeof l->listen, "%s", listen_at);
    snprintf(l->target, sizeof l->target, "%s", text);
    struct sockaddr_un a = address(l->listen);
    unlink(l->listen);
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&a, sizeof a) || listen(l->fd, 256))
        die("listen", l->listen);
    n_links++;
}

static link_ *link_find(const char *name) {
    for (int i = 0; i < n_links; i++)
        if (strcmp(links[i].name, name) == 0)
            return &links[i];
    return NULL;
}

// ---- pairs

static void pair_close(int i) {
    close(pairs[i]->fd[0]);
    close(pairs[i]->fd[1]);
    free(pairs[i]);
    pairs[i] = pairs[--n_pairs];
}

static void link_cut(const link_ *l) {
    for (int i = n_pairs - 1; i >= 0; i--)
        if (pairs[i]->of == l)
            pair_close(i);
}

static void link_accept(link_ *l) {
    int client = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0)
        return;
    struct sockaddr_un a = address(l->target);
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair *p = n_pairs < PAIRS_MOST && now_ms() >= l->refuse_until_ms ? calloc(1, sizeof *p) : NULL;
    if (!p || server < 0 || connect(server, (struct sockaddr *)&a, sizeof a)) {
        close(client);
        close(server);
        free(p);
        return;
    }
    fcntl(server, F_SETFL, O_NONBLOCK);
    p->of = l;
    p->fd[0] = client;
    p->fd[1] = server;
    pairs[n_pairs++] = p;
}

// The client's bytes decide whether the answer to them will be swallowed.
static void watch_for_text(pair *p, const char *bytes, size_t n) {
    link_ *l = p->of;
    size_t m = strlen(l->swallow);
    if (m && memmem(bytes, n, l->swallow, m)) {
        l->swallow[0] = '\0';
        p->swallows = true;
    }
}

// -1: the pair is over.
static int pair_read(pair *p, int side) {
    stream *s = &p->out[side];
    ssize_t n = read(p->fd[side], s->bytes, sizeof s->bytes);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0) {
        s->is_ended = true;
        shutdown(p->fd[1 - side], SHUT_WR);
        return p->out[1 - side].is_ended ? -1 : 0;
    }
    if (side == 1 && p->swallows)
        return -1;
    if (side == 0)
        watch_for_text(p, s->bytes, (size_t)n);
    s->n = (size_t)n;
    s->at = 0;
    return 0;
}

static int pair_write(pair *p, int from) {
    stream *s = &p->out[from];
    ssize_t n = write(p->fd[1 - from], s->bytes + s->at, s->n - s->at);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    s->at += (size_t)n;
    if (s->at == s->n)
        s->n = s->at = 0;
    return 0;
}

static short wanted(const pair *p, int side) {
    if (now_ms() < p->of->stall_until_ms)
        return 0;
    bool reads = !p->out[side].n && !p->out[side].is_ended, writes = p->out[1 - side].n > 0;
    return (short)((reads ? POLLIN : 0) | (writes ? POLLOUT : 0));
}

static int pair_move(pair *p, const struct pollfd f[2]) {
    for (int side = 0; side < 2; side++) {
        short events = f[side].revents, want = f[side].events;
        if ((events & POLLOUT) && pair_write(p, 1 - side))
            return -1;
        if ((want & POLLIN) && (events & (POLLIN | POLLHUP | POLLERR)) && pair_read(p, side))
            return -1;
        if (!want && (events & POLLERR))
            return -1;
    }
    return 0;
}

// ---- commands

static bool command(char *line) {
    const char *verb = strsep(&line, " "), *name = strsep(&line, " ");
    link_ *l = name ? link_find(name) : NULL;
    int64_t until_ms = now_ms() + (line ? atoll(line) : 0);
    if (!l)
        return false;
    if (strcmp(verb, "cut") == 0) {
        link_cut(l);
    } else if (strcmp(verb, "refuse") == 0) {
        l->refuse_until_ms = until_ms;
        link_cut(l);
    } else if (strcmp(verb, "stall") == 0) {
        l->stall_until_ms = until_ms;
    } else if (strcmp(verb, "swallow") == 0 && line) {
        snprintf(l->swallow, sizeof l->swallow, "%s", line);
    } else {
        return false;
    }
    return true;
}

// False at the end of stdin.
static bool read_commands(void) {
    static char text[4096];
    static size_t n;
    ssize_t got = read(STDIN_FILENO, text + n, sizeof text - 1 - n);
    if (got <= 0)
        return false;
    n += (size_t)got;
    text[n] = '\0';
    for (char *end; (end = strchr(text, '\n'));) {
        *end = '\0';
        puts(command(text) ? "ok" : "what?");
        n -= (size_t)(end + 1 - text);
        memmove(text, end + 1, n + 1);
    }
    fflush(stdout);
    return true;
}

// A stalled link is looked at again soon; else there is nothing to wait for but events.
static int patience_ms(void) {
    for (int i = 0; i < n_links; i++)
        if (links[i].stall_until_ms > now_ms())
            return 20;
    return -1;
}

static bool turn(void) {
    static struct pollfd f[1 + LINKS_MOST + 2 * PAIRS_MOST];
    int n = 0, carried = n_pairs;
    f[n++] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    for (int i = 0; i < n_links; i++)
        f[n++] = (struct pollfd){.fd = links[i].fd, .events = POLLIN};
    for (int i = 0; i < carried; i++)
        for (int side = 0; side < 2; side++)
            f[n++] = (struct pollfd){.fd = pairs[i]->fd[side], .events = wanted(pairs[i], side)};
    // A descriptor that wants nothing would only report its hang-up, again and again.
    for (int i = 1; i < n; i++)
        if (!f[i].events)
            f[i].fd = -f[i].fd - 1;
    if (poll(f, (nfds_t)n, patience_ms()) < 0)
        return errno == EINTR;
    for (int i = carried - 1; i >= 0; i--)
        if (pair_move(pairs[i], &f[1 + n_links + 2 * i]))
            pair_close(i);
    for (int i = 0; i < n_links; i++)
        if (f[1 + i].revents)
            link_accept(&links[i]);
    return !f[0].revents || read_commands();
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < argc; i++)
        link_add(argv[i]);
    puts("ok");
    fflush(stdout);
    while (turn())
        ;
    return 0;
}

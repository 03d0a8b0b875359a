// One client of the soak: connects, plays the act that chance gave it, and is followed by another.
// Owns its socket, TLS state and timer; the soak's one thread. Only the acts that behave well judge
// what they are answered.
#include "tests/soak/soak.h"
#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_MS 60000
#define LORIS_MS 250

typedef enum peer_phase { PHASE_CONNECT, PHASE_SHAKE, PHASE_TALK } peer_phase;

typedef struct peer {
    soak *soak;
    int fd;
    SSL *ssl;
    loop_io *io;
    loop_timer *timer;
    soak_act act;
    peer_phase phase;
    buf in, out;
    size_t out_at;
    int requests_left, status;
    bool is_asking;   // an answer is awaited
    bool half_closed; // ACT_NOTIFY and ACT_HALF did their deed and read on
} peer;

static const char *const names[N_ACTS] = {"short", "stream", "fin",  "reset", "notify",   "half",
                                          "deaf",  "loris",  "body", "bad",   "handshake"};

const char *peer_act_name(soak_act act) { return names[act]; }

static bool is_well_behaved(const peer *p) { return p->act == ACT_SHORT || p->act == ACT_STREAM; }

static void set_timer(peer *p, int ms, bool repeat, loop_fn *fn) {
    if (p->timer)
        loop_timer_remove(p->soak->loop, p->timer);
    p->timer = loop_timer_add(p->soak->loop, ms, repeat, fn, p);
}

// When an act does its deed: at random within 1/n of the time that acts may last, and not before
// all connections stand.
static int moment(soak *s, int n) {
    int64_t left = s->counts.most_open < s->n_wanted ? s->full_ms - loop_now_ms(s->loop) : 0;
    return 1 + (int)(left > 0 ? left : 0) + (int)soak_random(s, (uint32_t)(s->hold_ms / n));
}

static void leave(peer *p, bool is_reset) {
    soak *s = p->soak;
    if (is_well_behaved(p) && (p->is_asking || p->phase != PHASE_TALK) && !s->is_ending) {
        s->counts.broken++;
        fprintf(stderr, "soak: %s got no whole answer: %zu bytes, status %d, phase %d\n",
                names[p->act], p->in.len, p->status, (int)p->phase);
    }
    if (is_reset)
        setsockopt(p->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1},
                   sizeof(struct linger));
    if (p->timer)
        loop_timer_remove(s->loop, p->timer);
    loop_io_remove(s->loop, p->io);
    s->counts.open--;
    s->counts.shaking -= p->phase != PHASE_TALK;
    s->counts.done[p->act]++;
    SSL_free(p->ssl);
    close(p->fd);
    buf_release(&p->in);
    buf_release(&p->out);
    free(p);
}

// ---- acts

static void ask(peer *p, void (*what)(soak *, buf *)) {
    what(p->soak, &p->out);
    p->is_asking = true;
}

static bool flush(peer *p);
static void on_deed(void *ctx);

static void half_close(peer *p) {
    if (p->act == ACT_HALF || !p->ssl)
        shutdown(p->fd, SHUT_WR);
    else
        SSL_shutdown(p->ssl);
    ERR_clear_error();
    p->half_closed = true;
    set_timer(p, moment(p->soak, 2), false, on_deed);
}

static void on_deed(void *ctx) { // the moment of the act, or the end of patience
    peer *p = ctx;
    bool may_half_close = (p->act == ACT_NOTIFY || p->act == ACT_HALF) && p->phase == PHASE_TALK;
    p->timer = NULL; // it dies by firing
    if (may_half_close && !p->half_closed) {
        half_close(p);
    } else if (is_well_behaved(p) && p->phase == PHASE_TALK && !p->is_asking) {
        ask(p, p->act == ACT_SHORT ? ask_short : ask_stream); // after its pause
        set_timer(p, PATIENCE_MS, false, on_deed);
        flush(p);
    } else {
        leave(p, p->act == ACT_RESET);
    }
}

static void on_loris(void *ctx) {
    peer *p = ctx;
    if (p->out.len == 0)
        buf_puts(&p->out, "GET / HTTP/1.1\r\nHost: x\r\nX: ");
    else
        buf_puts(&p->out, "y");
    flush(p);
}

static void start_act(peer *p) {
    soak *s = p->soak;
    int ms = moment(s, 1);
    p->requests_left = 1 + (int)soak_random(s, 4);
    switch (p->act) {
    case ACT_SHORT:
        ask(p, ask_short);
        ms = PATIENCE_MS;
        break;
    case ACT_STREAM:
        ask(p, ask_stream);
        ms = PATIENCE_MS;
        break;
    case ACT_DEAF:
        ask(p, ask_much);
        break;
    case ACT_BODY:
        ask(p, ask_body_only_half);
        break;
    case ACT_BAD:
        ask(p, ask_badly);
        ms = PATIENCE_MS;
        break;
    case ACT_LORIS:
        set_timer(p, LORIS_MS, true, on_loris);
        return;
    default:
        ask(p, soak_random(s, 4) ? ask_slow : ask_stream);
    }
    set_timer(p, ms, false, on_deed);
}

// A whole answer is here. true: the peer left.
static bool on_answer(peer *p) {
    soak *s = p->soak;
    bool is_good = p->status >= 200 && p->status < 300;
    s->counts.answers += is_good;
    s->counts.refused += !is_good;
    p->is_asking = false;
    if (p->act == ACT_BAD)
        return false; // the server closes
    if (is_good && --p->requests_left > 0) {
        set_timer(p, moment(s, 4), false, on_deed); // a pause on the kept connection
        return false;
    }
    if (p->ssl)
        SSL_shutdown(p->ssl);
    leave(p, false);
    return true;
}

// ---- bytes

// false: the connection is over.
static bool is_again(peer *p, int rc) {
    if (!p->ssl)
        return errno == EAGAIN || errno == EINTR;
    int why = SSL_get_error(p->ssl, rc);
    ERR_clear_error();
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE;
}

static void watch(peer *p) {
    uint32_t events = EPOLLIN;
    if (p->act == ACT_DEAF && p->phase == PHASE_TALK)
        events = 0;
    if (p->phase == PHASE_CONNECT || p->out.len > p->out_at)
        events |= EPOLLOUT;
    loop_io_set(p->soak->loop, p->io, events);
}

// true: the peer left.
static bool flush(peer *p) {
    while (p->out.len > p->out_at) {
        const char *at = p->out.data + p->out_at;
        int n = (int)(p->out.len - p->out_at);
        int w = p->ssl ? SSL_write(p->ssl, at, n) : (int)send(p->fd, at, (size_t)n, MSG_NOSIGNAL);
        if (w <= 0 && is_again(p, w))
            break;
        if (w <= 0) {
            leave(p, false);
            return true;
        }
        p->out_at += (size_t)w;
    }
    watch(p);
    return false;
}

static void receive(peer *p) {
    char bytes[16384];
    for (;;) {
        int n = p->ssl ? SSL_read(p->ssl, bytes, sizeof bytes)
                       : (int)recv(p->fd, bytes, sizeof bytes, 0);
        if (n <= 0) {
            if (!is_again(p, n))
                leave(p, false);
            return;
        }
        if (!is_well_behaved(p) && p->act != ACT_BAD)
            continue;
        buf_put(&p->in, bytes, (size_t)n);
        long whole = ask_answer_bytes(p->in.data, p->in.len, &p->status);
        if (whole < 0) {
            fprintf(stderr, "soak: %s got an answer that is not HTTP\n", names[p->act]);
            p->soak->counts.broken++;
            leave(p, true);
            return;
        }
        if (whole == 0)
            continue;
        buf_consume(&p->in, (size_t)whole);
        if (on_answer(p))
            return;
    }
}

static void send_junk(peer *p) {
    static const char junk[] = "\x16\x03\x01\x02\x00\x01junk that is no client hello";
    send(p->fd, junk, 1 + soak_random(p->soak, sizeof junk - 1), MSG_NOSIGNAL);
    set_timer(p, moment(p->soak, 1), false, on_deed);
    p->soak->counts.shaking--;
    p->phase = PHASE_TALK;
    SSL_free(p->ssl);
    p->ssl = NULL;
    watch(p);
}

static void shake(peer *p) {
    if (p->ssl) {
        int rc = SSL_connect(p->ssl);
        if (rc != 1) {
            if (!is_again(p, rc))
                leave(p, false);
            else
                watch(p);
            return;
        }
    }
    p->phase = PHASE_TALK;
    p->soak->counts.shaking--;
    start_act(p);
    flush(p);
}

static void on_event(void *ctx, uint32_t events) {
    peer *p = ctx;
    if (p->phase == PHASE_CONNECT) {
        int why = 0;
        socklen_t n = sizeof why;
        getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &why, &n);
        if (why) {
            leave(p, false);
            return;
        }
        p->phase = PHASE_SHAKE;
        if (p->act == ACT_HANDSHAKE) {
            send_junk(p);
            return;
        }
    }
    if (p->phase == PHASE_SHAKE) {
        shake(p);
        return;
    }
    if ((events & EPOLLOUT) && flush(p))
        return;
    if (p->act == ACT_DEAF) {
        if (events & (EPOLLHUP | EPOLLERR))
            leave(p, false);
        return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(p);
}

// ---- start

void peer_open(soak *s) {
    const struct addrinfo *a = s->target.address;
    peer *p = calloc(1, sizeof *p);
    p->soak = s;
    p->act = (soak_act)soak_random(s, N_ACTS);
    if (p->act == ACT_BAD && soak_random(s, 4))
        p->act = ACT_SHORT; // ends at once: fewer of these, to let others live long
    p->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (p->fd < 0) {
        free(p);
        return;
    }
    int small = 4096;
    if (p->act == ACT_DEAF)
        setsockopt(p->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(p->fd, a->ai_addr, a->ai_addrlen) && errno != EINPROGRESS) {
        close(p->fd);
        free(p);
        return;
    }
    if (s->target.is_tls) {
        p->ssl = SSL_new(s->target.tls);
        SSL_set_fd(p->ssl, p->fd);
        SSL_set_connect_state(p->ssl);
        if (s->session && soak_random(s, 4)) // most resume, some shake hands in full
            SSL_set_session(p->ssl, s->session);
    }
    p->io = loop_io_add(s->loop, p->fd, EPOLLOUT, on_event, p);
    set_timer(p, PATIENCE_MS, false, on_deed); // to connect and shake hands
    if (++s->counts.open > s->counts.most_open)
        s->counts.most_open = s->counts.open;
    s->counts.shaking++;
}

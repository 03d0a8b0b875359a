// The soak: thousands of TLS clients that behave badly at random, against the echo application or a
// real gateway. soak.c starts and judges, soak_peer.c is one client, soak_ask.c what clients say.
#ifndef TESTS_SOAK_SOAK_H
#define TESTS_SOAK_SOAK_H
#include "base/buf.h"
#include "base/loop.h"
#include <netdb.h>
#include <openssl/ssl.h>
#include <stdint.h>

typedef struct soak_target {
    char host[128], port[8], prefix[128]; // prefix: path before "/chat/completions"
    bool is_tls;
    const char *key, *model; // model NULL: the echo application
    SSL_CTX *tls;
    struct addrinfo *address;
} soak_target;

typedef enum soak_act {
    ACT_SHORT,     // a few short requests with pauses, each must be answered
    ACT_STREAM,    // the same with whole streams
    ACT_FIN,       // closes while it waits or streams
    ACT_RESET,     // the same with RST
    ACT_NOTIFY,    // close_notify only, then reads on
    ACT_HALF,      // shutdown(SHUT_WR), then reads on
    ACT_DEAF,      // asks for much and never reads: zero window
    ACT_LORIS,     // a head, byte by byte
    ACT_BODY,      // leaves inside its body
    ACT_BAD,       // malformed framing: a 4xx or the end
    ACT_HANDSHAKE, // leaves inside the handshake, or sends junk for it
    N_ACTS
} soak_act;

typedef struct soak_counts {
    long done[N_ACTS];
    long answers, refused; // 2xx; other statuses
    long broken;           // a client that behaved well got no whole answer
    int open, most_open, shaking;
} soak_counts;

typedef struct soak {
    loop *loop;
    soak_target target;
    soak_counts counts;
    int n_wanted, hold_ms;
    int64_t full_ms;      // by then n_wanted connections should stand
    SSL_SESSION *session; // the last ticket, to resume with
    bool is_ending;
    uint64_t random; // state of the generator; the seed is printed
} soak;

uint32_t soak_random(soak *s, uint32_t below);

// ---- soak_ask.c
void ask_short(soak *s, buf *out);
void ask_slow(soak *s, buf *out);   // an answer or stream that takes a while
void ask_stream(soak *s, buf *out); // a short stream
void ask_much(soak *s, buf *out);   // more than any buffer holds
void ask_badly(soak *s, buf *out);
void ask_body_only_half(soak *s, buf *out);
// A whole answer at p: its bytes, else 0 (more is needed) or -1 (not HTTP). *status is set.
long ask_answer_bytes(const char *p, size_t n, int *status);

// ---- soak_peer.c
void peer_open(soak *s);
const char *peer_act_name(soak_act act);

#endif

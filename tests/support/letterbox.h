// The gateway's end of a worker's replies, for tests of worker/: a reply stream on a private Redis
// and what each choice of each request was told. Failures end the test through cmocka's assertions;
// one thread.
#ifndef TESTS_SUPPORT_LETTERBOX_H
#define TESTS_SUPPORT_LETTERBOX_H
#include <stdbool.h>
#include "base/buf.h"
#include "base/redis.h"
#include "router/job.h"
#include "router/reply.h"

typedef struct told_choice {
    int n;
    int32_t ids[512];
    float logprobs[512];
    int n_top[512];
    buf text;
    reply_finish finish;
    unsigned flags; // of all its frames
    int n_prompt;   // prompt tokens described, in order
    int32_t prompt_ids[512];
    float prompt_logprobs[512];
} told_choice;

typedef struct told { // of one request
    char id[ID_UUID_TEXT];
    uint64_t run;
    int n_claims, n_holds, n_refused, n_prefilled, queue_ms;
    int n_begun, queue_steps; // as said with BEGUN
    int cached;               // as said with PREFILLED
    int64_t engine_us;
    told_choice choices[JOB_CHOICES];
} told;

typedef struct letterbox {
    redis *r;
    uint64_t gateway, worker; // worker: of the last reply
    char read_to[32];
    told *requests[16]; // in order of their first frame
    int n_requests, n_replies;
} letterbox;

// Makes the stream. skip[choice]: positions that an earlier attempt told already.
void letterbox_open(letterbox *m, const char *redis_address, uint64_t gateway);
void letterbox_end(letterbox *m); // the gateway's lease is over
void letterbox_close(letterbox *m);
void letterbox_read(letterbox *m); // all replies since the last call; checks that positions follow
told *letterbox_find(letterbox *m, const char *id); // made when it is not there
// Reads until every choice of the request was told its last (or one was refused), at most ms.
bool letterbox_wait_last(letterbox *m, const char *id, int n_choices, int ms);

// A greedy job of one choice with these ids; the arrays are borrowed.
job letterbox_job(const letterbox *m, int number, const int32_t *prompt, int n_prompt,
                  int max_tokens);

#endif

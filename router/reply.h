// What a worker sends a gateway: one message per engine step and gateway, holding one frame per
// choice that moved. Appended to the gateway's reply stream tg:g:{gateway} as one field. Encoded
// little-endian with a version byte.
#ifndef ROUTER_REPLY_H
#define ROUTER_REPLY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/id.h"

enum reply_flag {
    REPLY_CLAIM = 1,     // the job arrived and this run begins (no tokens)
    REPLY_HOLD = 2,      // alive, nothing new
    REPLY_PREFILLED = 4, // the prompt is in the cache
    REPLY_LAST = 8,      // nothing follows for this choice; finish says why
    REPLY_REFUSED = 16,  // the worker cannot run this job (not readable, other model); redeliver
    REPLY_RETURNED = REPLY_REFUSED | REPLY_LAST, // the worker goes out of service; this run is over
    REPLY_PROMPT = 32, // tokens are the prompt's, with log-probabilities (echo)
    REPLY_FAILED =
        64, // the engine failed this request alone; text holds no secret; end it with an error
    REPLY_AGAIN = 128, // tokens of the same step as the frame before it for this choice
    REPLY_BEGUN = 256, // the run's first pass of the engine
};

typedef enum reply_finish { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ERROR } reply_finish;

typedef struct reply_logprob {
    int32_t id;
    float logprob;
} reply_logprob;

typedef struct reply_token {
    int32_t id;
    float logprob; // NaN: not asked for
    int n_top;
    const reply_logprob *top; // n_top of them
} reply_token;

typedef struct reply_frame {
    char id[ID_UUID_TEXT];
    int choice, attempt;
    uint64_t run;   // number the worker gave this claim
    unsigned flags; // reply_flag bits
    int from; // position of tokens[0] among the choice's generated tokens (PROMPT: in the prompt)
    reply_token *tokens;
    int n_tokens;
    const char *text; // what these tokens add to the answer: whole UTF-8 characters, held-back text
                      // excluded until it is certain
    size_t n_text;
    reply_finish finish;
    int cached;      // prompt tokens found in the prefix cache
    int queue_ms;    // CLAIM, BEGUN: since acceptance; otherwise 0
    int queue_steps; // BEGUN: passes of this worker that ended meanwhile; otherwise 0
    int engine_us;   // this frame's share of the step's time
} reply_frame;

typedef struct reply {
    uint64_t worker; // incarnation
    reply_frame *frames;
    int n_frames;
} reply;

void reply_encode(const reply *r, buf *out);
int reply_decode(const void *p, size_t n, arena *a, reply *r, err *e); // pointers from the arena

#endif

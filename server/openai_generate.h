// Parts of chat and completions that openai_generate.c and openai_generate_told.c share.
#ifndef SERVER_OPENAI_GENERATE_H
#define SERVER_OPENAI_GENERATE_H
#include "server/openai_answer.h"
#include "server/openai_call.h"
#include "server/openai_idempotency.h"
#include "server/openai_prompt.h"

typedef struct generation generation;

typedef struct part { // one prompt: one request of the router
    generation *g;
    int index;
    request *request; // valid until has_ended
    bool has_ended;
    request_end end;
    token_list prompt; // until it is submitted
    int n_prompt;
    const char *echo; // what stands before the answer, or NULL
    size_t n_echo;
} part;

typedef struct written { // an event in the socket's queue
    uint64_t mark;
    int part, choice, total;
} written;

// Lives in the exchange's arena; ends when all its parts have ended.
struct generation {
    call *c;
    openai_request q; // its JSON tree is released once the prompts are tokens
    assign_target target;
    const char *task; // static
    char route[160];  // why this model
    lane lane;
    int64_t deadline_ms;
    bool allow_truncate, is_fim;
    const char *session; // of the editor, borrowed from the exchange; NULL: none
    char idem[IDEMPOTENCY_HASH], body_hash[IDEMPOTENCY_HASH];
    const char *replay; // the stored answer to an earlier request with this key, or NULL
    size_t n_replay;
    err failed; // the first reason why there will be no whole answer
    part *parts;
    int n_parts, n_open; // submitted and not ended
    answer *answer;
    bool is_closing; // close is posted
    // streams
    bool is_begun;  // the head was sent
    bool has_rates; // its rate headers are set
    loop_timer *timer;
    int64_t wrote_ms;
    uint64_t mark;
    written *ring; // entered by an event's write, left when the socket took it
    uint32_t ring_cap, ring_in, ring_out;
};

// The router's events for a part (request_events; ctx is the part).
extern const request_events generation_events;
// Before the first part is submitted: the answer, the timer of a stream.
void generation_open(generation *g);
// Ends g and its call, from the loop, once no part is open.
void generation_close_soon(generation *g);
// Nothing more will be said: tells the router to stop all parts.
void generation_cancel(generation *g, request_outcome why);
void generation_taken(call *c, uint64_t mark);

#endif

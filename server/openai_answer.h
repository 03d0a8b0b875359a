// The bytes of an answer: SSE events while tokens come, or one JSON body. Knows what was told of
// each choice; sends nothing. Choices are numbered as the client sees them: prompt x n + choice.
#ifndef SERVER_OPENAI_ANSWER_H
#define SERVER_OPENAI_ANSWER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "model/tokenizer.h"
#include "router/reply.h"

typedef struct answer answer; // one thread at a time

typedef struct answer_options { // texts are copied
    bool is_chat;               // else a legacy completion
    const char *id;             // "chatcmpl-" or "cmpl-" goes before it
    const char *model, *fingerprint;
    int64_t created;          // Unix seconds
    int n_prompts, n_choices; // choices per prompt
    bool has_usage;           // stream_options.include_usage
    bool has_tier;            // service_tier was asked for
    bool has_logprobs;
    const tokenizer *tokenizer; // borrowed
} answer_options;

typedef struct answer_usage {
    int prompt_tokens, cached_tokens, completion_tokens;
} answer_usage;

answer *answer_new(const answer_options *o);
void answer_free(answer *a);

// Echo: this text stands before every choice of a prompt (copied).
void answer_echo(answer *a, int prompt, const char *text, size_t n);
// Takes in a PROMPT frame; positions already taken (another attempt) are passed over.
void answer_take_prompt(answer *a, int prompt, const reply_frame *f);
int answer_prompt_taken(const answer *a, int prompt);
// Takes in what a frame adds to a choice. out NULL: kept for answer_put_body. Otherwise appends its
// events, the first with the role or the echo. Returns how many tokens the choice has now.
int answer_take(answer *a, int choice, const reply_frame *f, buf *out);

// The event with the finish_reason; limited_by: the quota that shortened it, or NULL.
void answer_put_finish(answer *a, int choice, reply_finish finish, const char *limited_by,
                       buf *out);
// The usage event when it was asked for, then [DONE].
void answer_put_done(const answer *a, const answer_usage *u, buf *out);
// An error after the first token; nothing follows it.
void answer_put_error_event(const err *e, buf *out);
// The whole answer; finish holds one reason per choice.
void answer_put_body(answer *a, const reply_finish *finish, const answer_usage *u,
                     const char *limited_by, buf *out);

#endif

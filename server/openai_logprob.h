// Log-probabilities in the two shapes of OpenAI's API. Tokens may be parts of characters.
#ifndef SERVER_OPENAI_LOGPROB_H
#define SERVER_OPENAI_LOGPROB_H
#include "base/buf.h"
#include "model/tokenizer.h"
#include "router/reply.h"

// Chat: appends {"token","logprob","bytes","top_logprobs"}, with a comma before it unless out is
// empty.
void logprob_put_chat(const tokenizer *t, const reply_token *token, buf *out);

// Legacy completions: four parallel lists, kept apart until they are written.
typedef struct logprob_lists { // zero-initialised is empty
    buf tokens, values, tops, offsets;
    int n;
    size_t n_characters; // text_offset of the next token
} logprob_lists;
void logprob_lists_put(logprob_lists *l, const tokenizer *t, const reply_token *token);
// {"tokens","token_logprobs","top_logprobs","text_offset"} of a followed by b; either may be NULL.
void logprob_lists_write(const logprob_lists *a, const logprob_lists *b, buf *out);
void logprob_lists_clear(logprob_lists *l); // n_characters stays
void logprob_lists_release(logprob_lists *l);

#endif

// A request's prompts as token ids of one model, and what only the model can refuse.
#ifndef SERVER_OPENAI_PROMPT_H
#define SERVER_OPENAI_PROMPT_H
#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "model/catalogue.h"
#include "model/tokenizer.h"
#include "server/openai_request.h"

// How many token lists a request makes: one per prompt, one for its messages.
int openai_prompt_count(const openai_request *q);
// Fills out[openai_prompt_count(q)], zero-initialised lists which the caller releases (after -1
// too). Checked for chat and completions: token ids against the vocabulary, prompt + max_tokens
// against the context (ERR_CONTEXT_LENGTH), suffix against the model (ERR_NO_FIM).
int openai_prompt_encode(const openai_request *q, const catalogue_entry *m, arena *a,
                         token_list *out, err *e);
// Appends the text that ids spell, control tokens by their names; bytes that are no UTF-8 stay.
void openai_prompt_text(const tokenizer *t, const int32_t *ids, size_t n, buf *out);

#endif

// Chat templates: C functions per model family that emit segments marked trusted (may spell control
// tokens) or not (user text, never parsed for control tokens). An unknown template is an error at
// load that names the setting to give ([model NAME] template=...).
#ifndef MODEL_TEMPLATE_H
#define MODEL_TEMPLATE_H
#include <stdbool.h>
#include <stddef.h>
#include "base/arena.h"
#include "base/err.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

// Borrowed strings, valid UTF-8. No family here writes name or tool_call_id.
typedef struct chat_message {
    const char *role; // "system", "developer", "user", "assistant", "tool"
    const char *content;
    size_t n_content;
    const char *name;         // or NULL
    const char *tool_call_id; // or NULL
} chat_message;

typedef struct segment_list { // from the arena; texts are static, borrowed from the messages, or
                              // from the arena too
    segment *items;
    size_t n, cap;
} segment_list;

// Static; what they write equals Hugging Face's apply_chat_template of the model's own template:
//   chatml          <|im_start|>ROLE ... <|im_end|>, nothing else
//   smollm          SmolLM2: chatml with its system prompt when none is given
//   qwen2, qwen2.5  chatml with the system prompt of each; 2.5 (and Coder) writes tool answers
//   qwen3           leaves earlier thoughts (<think>) out; the model decides whether to think
//   qwen3-thinking  the answer starts with <think>;  qwen3-no-think  with an empty thought
//   llama3          headers and <|eot_id|>;  llama3.1  (3.1, 3.2, 3.3) with the dates in front:
//                   always 26 Jul 2024, which the template holds for callers without a clock
typedef struct chat_template chat_template;
const chat_template *template_by_name(const char *name); // NULL: unknown
const char *template_names(void);                        // all of them, for messages
// Recognises tokenizer.chat_template of the file. ERR_UNSUPPORTED (none, or none we know) says
// which names may be configured.
int template_detect(const gguf *g, const chat_template **out, err *e);
const char *template_name(const chat_template *t);
// add_generation: end with the opening of the assistant's turn. "developer" is written as system.
// ERR_INVALID with param "messages[i].role" for an unknown role, or "messages" for none at all;
// ERR_UNSUPPORTED for "tool" where the family has no tools.
int template_render(const chat_template *t, const chat_message *messages, size_t n,
                    bool add_generation, arena *a, segment_list *out, err *e);
// Tokenises segments (adds BOS when the tokenizer wants one and the template did not spell it).
int template_encode(const tokenizer *t, const segment_list *segments, token_list *out, err *e);

#endif

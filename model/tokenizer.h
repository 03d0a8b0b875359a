// Byte-level BPE tokenizer of a GGUF file (tokenizer.ggml.model = "gpt2"); pre-tokenizers smollm,
// qwen2, llama-bpe, gpt-2. Exact: the same ids as Hugging Face tokenizers. Read-only after open:
// any thread. Text from users never becomes a control token: only TOKENIZER_TRUSTED segments are
// parsed for them.
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "model/gguf.h"

typedef struct tokenizer tokenizer;

typedef struct token_list { // zero-initialised is empty
    int32_t *ids;
    size_t n, cap;
} token_list;
void token_list_push(token_list *l, int32_t id);
void token_list_release(token_list *l);

int tokenizer_open(const gguf *g, tokenizer **out,
                   err *e); // g stays open and is borrowed; ERR_UNSUPPORTED names the setting
void tokenizer_close(tokenizer *t);
int tokenizer_n_vocab(const tokenizer *t);

typedef struct segment { // a piece of a prompt
    const char *text;    // valid UTF-8
    size_t n;
    bool trusted; // ours: control tokens spelt in it become their ids
} segment;

// Appends the ids of segments to out, as if they were one text: words and normalisation go across
// their borders, added tokens do not. Control tokens are found in trusted segments only; elsewhere
// their names are ordinary text. User-defined tokens (<tool_call>, <think>), which are text that
// happens to have an id, are found in both, as by Hugging Face. No BOS is added. Bytes that a small
// vocabulary lacks (SmolLM2: six control characters) are dropped, as by Hugging Face. A word of n
// bytes takes O(n log n) time and about 10 n bytes of memory, its tokens included. ERR_INVALID: not
// UTF-8; ERR_TOO_LARGE. On errors out is as before.
int tokenizer_encode_segments(const tokenizer *t, const segment *segments, size_t n,
                              token_list *out, err *e);
// The same for one text; parse_control: it is trusted.
int tokenizer_encode(const tokenizer *t, const char *text, size_t n, bool parse_control,
                     token_list *out, err *e);
// The bytes of a token: borrowed; may be a part of a UTF-8 character. Control tokens yield their
// name when show_control, else nothing.
const char *tokenizer_piece(const tokenizer *t, int32_t id, bool show_control, size_t *n);
bool tokenizer_is_control(const tokenizer *t, int32_t id);
int32_t
tokenizer_find(const tokenizer *t,
               const char *name); // id of a token by its exact name ("<|im_end|>"), -1: none
int32_t tokenizer_bos(const tokenizer *t); // -1: none
bool tokenizer_adds_bos(const tokenizer *t);
// Tokens that end an answer: eos, eot, and the family's turn ends (<|im_end|>, <|endoftext|>,
// <|eot_id|>, ...).
bool tokenizer_is_end(const tokenizer *t, int32_t id);

// How many bytes at the front of p[0..n) are whole UTF-8 characters; an unfinished but so far valid
// one at the end is left out, invalid bytes count as whole (they are replaced by U+FFFD when text
// is made of them).
size_t utf8_whole(const char *p, size_t n);

#endif

// What the parts of the tokenizer (tokenizer*.c) share; nobody else includes this.
#ifndef MODEL_TOKENIZER_INTERNAL_H
#define MODEL_TOKENIZER_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/buf.h"
#include "model/tokenizer.h"
#include <pcre2.h>

#define TOKENIZER_NAME_MAX 256 // longest control or user-defined token that text is searched for
#define N_BYTE_CHARS 324       // the byte-level alphabet lies below this code point

typedef enum token_kind { // the numbers of tokenizer.ggml.token_type
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
} token_kind;

typedef struct token_table { // open addressing over ids, a power of two of slots, -1 = free
    int32_t *slots;
    size_t mask;
} token_table;

typedef struct merge {
    uint64_t pair; // left id in the upper half, right id in the lower; UINT64_MAX = free slot
    uint32_t rank; // position in the list of merges, lowest first
    int32_t id;    // what the pair becomes
} merge;

typedef struct merge_table {
    merge *slots;
    size_t mask;
} merge_table;

typedef struct name_list { // ids in the byte order of their names
    int32_t *ids;
    size_t n;
    bool starts[256]; // some name starts with this byte
} name_list;

struct tokenizer {
    uint64_t hash_seed; // random, so that no vocabulary can be made to collide
    int n_vocab;
    uint8_t *kind;                 // token_kind [n_vocab]
    gguf_string *names;            // [n_vocab], borrowed from the file
    size_t *piece_at;              // [n_vocab + 1], offsets into pieces
    char *pieces;                  // the bytes of all tokens, one after the other
    int32_t bytes[256];            // the token of a single byte, -1: the vocabulary has none
    token_table by_name, by_piece; // by_piece: only tokens that BPE makes of exactly their bytes
    merge_table merges;
    name_list controls, user_defined; // controls: with the user-defined ones
    pcre2_code *pre;
    pcre2_match_context *limits;
    bool normalise, ignore_merges, adds_bos;
    int32_t bos;
    bool *is_end; // [n_vocab]
};

typedef struct bpe_scratch { // of one encode call; a long word needs heap memory, kept till the end
    pcre2_match_data *match;
    int32_t *symbols; // [cap]: of a long word
    size_t cap;
    uint64_t *heap;
    size_t n_heap, heap_cap;
    buf normalised;
} bpe_scratch;

// tokenizer_vocab.c: tokens, kinds, names, pieces, single bytes.
int vocab_load(tokenizer *t, const gguf *g, err *e);
void vocab_release(tokenizer *t);
uint64_t vocab_hash(const tokenizer *t, const char *p, size_t n);
int32_t vocab_find(const tokenizer *t, const char *name, size_t n);
int32_t vocab_find_piece(const tokenizer *t, const char *p, size_t n);
// The longest name of the list at the front of p, -1: none.
int32_t vocab_match(const tokenizer *t, const name_list *l, const char *p, size_t n, size_t *used);
void token_table_init(token_table *t, size_t n_items);
void token_table_put(token_table *t, uint64_t hash, int32_t id);
bool vocab_is_control(const tokenizer *t, int32_t id);
// The bytes that an ordinary token's name stands for; false when a character is outside the
// byte-level alphabet. to has room for n bytes.
bool vocab_decode_name(const char *name, size_t n, char *to, size_t *n_out);

// tokenizer_bpe.c: merges, and a word's way through them.
int bpe_load(tokenizer *t, const gguf *g, err *e);
void bpe_release(tokenizer *t);
void bpe_word(const tokenizer *t, bpe_scratch *s, const char *p, size_t n, token_list *out);

// tokenizer_nfc.c
bool nfc_may_change(const char *p, size_t n);    // false: it is in form C for sure
void nfc_put(const char *p, size_t n, buf *out); // appends the normalised text

// tokenizer_pre.c: the cut into words.
int pre_load(tokenizer *t, const gguf *g, err *e);
void pre_release(tokenizer *t);
// text: valid UTF-8 without added tokens.
int pre_encode(const tokenizer *t, bpe_scratch *s, const char *text, size_t n, token_list *out,
               err *e);

#endif

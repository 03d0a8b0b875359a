// The tokenizer as others see it: opens the parts (vocabulary, merges, pre-tokenizer), takes added
// tokens out of trusted text before the rest is cut into words, and answers questions about
// tokens. Owns its tables, borrows the file; read-only after open, so any thread may use it. Does
// not write messages into templates (template.c).
#include "model/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_TEXT (INT32_MAX / 4)

// ---- lists

void token_list_push(token_list *l, int32_t id) {
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        int32_t *ids = realloc(l->ids, cap * sizeof *ids);
        if (!ids)
            fatal("out of memory: a list of %zu tokens", cap);
        l->ids = ids;
        l->cap = cap;
    }
    l->ids[l->n++] = id;
}

void token_list_release(token_list *l) {
    free(l->ids);
    *l = (token_list){0};
}

// ---- opening

static int read_id(const tokenizer *t, const gguf *g, const char *key, int32_t *out, err *e) {
    uint64_t id;
    *out = -1;
    if (!gguf_has(g, key, NULL))
        return 0;
    if (!gguf_get_u64(g, key, &id) || id >= (uint64_t)t->n_vocab)
        return err_set(e, ERR_FORMAT, key, "%s is not a token of the vocabulary", key);
    *out = (int32_t)id;
    return 0;
}

static int read_ends(tokenizer *t, const gguf *g, err *e) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    static const char *const names[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>",
                                        "<|end_of_text|>"};
    t->is_end = calloc((size_t)t->n_vocab, sizeof *t->is_end);
    if (!t->is_end)
        fatal("out of memory: %d tokens", t->n_vocab);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int32_t end;
        if (read_id(t, g, keys[i], &end, e))
            return -1;
        if (end >= 0)
            t->is_end[end] = true;
    }
    uint64_t id;
    for (uint64_t i = 0; gguf_array_u64(g, "tiergate.end_token_ids", i, &id); i++) // ours: hf.h
        if (id < (uint64_t)t->n_vocab)
            t->is_end[id] = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t end = tokenizer_find(t, names[i]);
        if (end >= 0)
            t->is_end[end] = true;
    }
    return 0;
}

static int check_model(const gguf *g, err *e) {
    const char *key = "tokenizer.ggml.model";
    gguf_string name;
    if (!gguf_get_string(g, key, &name))
        return err_set(e, ERR_FORMAT, key, "%s is missing: the file has no tokenizer", key);
    if (name.n != 4 || memcmp(name.p, "gpt2", 4))
        return err_set(e, ERR_UNSUPPORTED, key,
                       "%s \"%.*s\" is not supported; only gpt2 (byte-level BPE) is", key,
                       (int)(name.n < 64 ? name.n : 64), name.p);
    return 0;
}

static int open_parts(tokenizer *t, const gguf *g, err *e) {
    if (check_model(g, e) || pre_load(t, g, e) || vocab_load(t, g, e) || bpe_load(t, g, e) ||
        read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, e) || read_ends(t, g, e))
        return -1;
    const char *key = "tokenizer.ggml.add_bos_token";
    if (gguf_has(g, key, NULL) && !gguf_get_bool(g, key, &t->adds_bos))
        return err_set(e, ERR_FORMAT, key, "%s is not a bool", key);
    if (t->adds_bos && t->bos < 0)
        return err_set(e, ERR_FORMAT, "tokenizer.ggml.bos_token_id",
                       "tokenizer.ggml.bos_token_id is missing, but the tokenizer adds it");
    return 0;
}

int tokenizer_open(const gguf *g, tokenizer **out, err *e) {
    tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        fatal("out of memory: a tokenizer");
    if (open_parts(t, g, e)) {
        tokenizer_close(t);
        return -1;
    }
    *out = t;
    return 0;
}

void tokenizer_close(tokenizer *t) {
    if (!t)
        return;
    free(t->is_end);
    bpe_release(t);
    vocab_release(t);
    pre_release(t);
    free(t);
}

// ---- questions

int tokenizer_n_vocab(const tokenizer *t) { return t->n_vocab; }
int32_t tokenizer_bos(const tokenizer *t) { return t->bos; }
bool tokenizer_adds_bos(const tokenizer *t) { return t->adds_bos; }

static bool is_token(const tokenizer *t, int32_t id) { return id >= 0 && id < t->n_vocab; }

bool tokenizer_is_control(const tokenizer *t, int32_t id) {
    return is_token(t, id) && vocab_is_control(t, id);
}

bool tokenizer_is_end(const tokenizer *t, int32_t id) { return is_token(t, id) && t->is_end[id]; }

int32_t tokenizer_find(const tokenizer *t, const char *name) {
    return vocab_find(t, name, strlen(name));
}

const char *tokenizer_piece(const tokenizer *t, int32_t id, bool show_control, size_t *n) {
    *n = 0;
    if (!is_token(t, id) || (!show_control && vocab_is_control(t, id)))
        return "";
    *n = t->piece_at[id + 1] - t->piece_at[id];
    return t->pieces + t->piece_at[id];
}

// ---- encoding

// Positions are 32 bits wide, and NFC may make three bytes of one.
static int check_text(const char *p, size_t n, size_t *total, err *e) {
    if (n > MAX_TEXT - *total)
        return err_set(e, ERR_TOO_LARGE, NULL, "a text of over %d bytes is too long", MAX_TEXT);
    *total += n;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used = !(p[i] & 0x80) ? 1
                                               : utf8proc_iterate((const utf8proc_uint8_t *)p + i,
                                                                  (utf8proc_ssize_t)(n - i), &c);
        if (used <= 0)
            return err_set(e, ERR_INVALID, NULL, "the text is not UTF-8 at byte %zu", i);
        i += (size_t)used;
    }
    return 0;
}

// The first added token at or after `at`: its position (n: none) and id.
static size_t next_added(const tokenizer *t, const name_list *l, const char *text, size_t at,
                         size_t n, int32_t *id, size_t *used) {
    for (; at < n; at++) {
        *id = vocab_match(t, l, text + at, n - at, used);
        if (*id >= 0)
            return at;
    }
    return n;
}

// Words may reach across segments, so text waits in `plain` until an added token or the end.
static int encode_plain(const tokenizer *t, bpe_scratch *s, buf *plain, token_list *out, err *e) {
    int rc = plain->len ? pre_encode(t, s, plain->data, plain->len, out, e) : 0;
    buf_clear(plain);
    return rc;
}

static int encode_segment(const tokenizer *t, bpe_scratch *s, const segment *g, buf *plain,
                          token_list *out, err *e) {
    const name_list *added = g->trusted ? &t->controls : &t->user_defined;
    for (size_t at = 0; at < g->n;) {
        int32_t id = -1;
        size_t used = 0, end = next_added(t, added, g->text, at, g->n, &id, &used);
        buf_put(plain, g->text + at, end - at);
        if (id >= 0) {
            if (encode_plain(t, s, plain, out, e))
                return -1;
            token_list_push(out, id);
        }
        at = end + used;
    }
    return 0;
}

int tokenizer_encode_segments(const tokenizer *t, const segment *segments, size_t n,
                              token_list *out, err *e) {
    size_t total = 0, before = out->n;
    for (size_t i = 0; i < n; i++)
        if (check_text(segments[i].text, segments[i].n, &total, e))
            return -1;
    bpe_scratch s = {.match = pcre2_match_data_create(1, NULL)};
    buf plain = {0};
    int rc = s.match ? 0 : err_set(e, ERR_INTERNAL, NULL, "out of memory");
    for (size_t i = 0; i < n && !rc; i++)
        rc = encode_segment(t, &s, &segments[i], &plain, out, e);
    if (!rc)
        rc = encode_plain(t, &s, &plain, out, e);
    if (rc)
        out->n = before;
    buf_release(&plain);
    buf_release(&s.normalised);
    free(s.heap);
    free(s.symbols);
    pcre2_match_data_free(s.match);
    return rc;
}

int tokenizer_encode(const tokenizer *t, const char *text, size_t n, bool parse_control,
                     token_list *out, err *e) {
    segment s = {text, n, parse_control};
    return tokenizer_encode_segments(t, &s, 1, out, e);
}

// ---- streams of text

size_t utf8_whole(const char *p, size_t n) {
    const unsigned char *b = (const unsigned char *)p;
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char lead = b[n - back], second = back > 1 ? b[n - back + 1] : 0;
        if (lead >= 0x80 && lead <= 0xbf)
            continue;
        size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                        : lead >= 0xe0 && lead <= 0xef ? 3
                        : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                       : 1;
        bool impossible =
            back > 1 && ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
                         (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f));
        return length > back && !impossible ? n - back : n;
    }
    return n;
}

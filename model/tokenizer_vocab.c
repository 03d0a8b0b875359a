// The vocabulary of a tokenizer: reads tokens and their kinds from the file, undoes the byte-level
// alphabet once so that a token's bytes are a slice, and finds tokens by name, by bytes or at the
// front of a text. Everything here is built at open and read-only after. Names are borrowed from
// the file. Does not merge (tokenizer_bpe.c) and does not cut text (tokenizer_pre.c).
#include "model/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <utf8proc.h>

#define MAX_TOKENS (1u << 22)

static void *need(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p)
        fatal("out of memory: a vocabulary wants %zu times %zu bytes", n, size);
    return p;
}

// ---- hashing

static uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

uint64_t vocab_hash(const tokenizer *t, const char *p, size_t n) {
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t h = t->hash_seed ^ n;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = mix(h ^ w, odd ^ t->hash_seed);
    }
    uint64_t w = 0;
    memcpy(&w, p, n);
    return mix(h ^ w, odd ^ t->hash_seed);
}

void token_table_init(token_table *t, size_t n_items) {
    size_t n = 16;
    while (n < n_items * 2)
        n *= 2;
    t->slots = need(n, sizeof *t->slots);
    t->mask = n - 1;
    for (size_t i = 0; i < n; i++)
        t->slots[i] = -1;
}

void token_table_put(token_table *t, uint64_t hash, int32_t id) {
    size_t i = hash & t->mask;
    while (t->slots[i] >= 0)
        i = (i + 1) & t->mask;
    t->slots[i] = id;
}

int32_t vocab_find(const tokenizer *t, const char *name, size_t n) {
    const token_table *tab = &t->by_name;
    for (size_t i = vocab_hash(t, name, n) & tab->mask; tab->slots[i] >= 0;
         i = (i + 1) & tab->mask) {
        const gguf_string *s = &t->names[tab->slots[i]];
        if (s->n == n && !memcmp(s->p, name, n))
            return tab->slots[i];
    }
    return -1;
}

int32_t vocab_find_piece(const tokenizer *t, const char *p, size_t n) {
    const token_table *tab = &t->by_piece;
    for (size_t i = vocab_hash(t, p, n) & tab->mask; tab->slots[i] >= 0; i = (i + 1) & tab->mask) {
        size_t at = t->piece_at[tab->slots[i]], len = t->piece_at[tab->slots[i] + 1] - at;
        if (len == n && !memcmp(t->pieces + at, p, n))
            return tab->slots[i];
    }
    return -1;
}

// ---- the byte-level alphabet of GPT-2: printable bytes stand for themselves, the other 68 follow
// in order from code point 256 on

static int char_of_byte(int b) {
    if (b <= 32)
        return 256 + b;
    if (b >= 127 && b <= 160)
        return 256 + 33 + (b - 127);
    return b == 173 ? 323 : b;
}

static int byte_of_char(int c) { // -1: not of the alphabet
    if (c >= 256)
        return c <= 288 ? c - 256 : c <= 322 ? c - 289 + 127 : c == 323 ? 173 : -1;
    return char_of_byte(c) == c ? c : -1;
}

bool vocab_decode_name(const char *name, size_t n, char *to, size_t *n_out) {
    size_t made = 0;
    while (n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)name, (utf8proc_ssize_t)n, &c);
        int byte = used > 0 ? byte_of_char(c) : -1;
        if (byte < 0)
            return false;
        to[made++] = (char)byte;
        name += used;
        n -= (size_t)used;
    }
    *n_out = made;
    return true;
}

// ---- reading

static bool is_utf8(gguf_string s) {
    while (s.n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)s.p, (utf8proc_ssize_t)s.n, &c);
        if (used <= 0)
            return false;
        s.p += used;
        s.n -= (size_t)used;
    }
    return true;
}

static int read_names(tokenizer *t, const gguf *g, err *e) {
    const char *key = "tokenizer.ggml.tokens";
    gguf_type element;
    uint64_t n;
    if (!gguf_array(g, key, &element, &n) || element != GGUF_STRING)
        return err_set(e, ERR_FORMAT, key, "%s is missing or not an array of strings", key);
    if (n < 1 || n > MAX_TOKENS)
        return err_set(e, ERR_FORMAT, key, "%s has %llu tokens; 1 to %u are possible", key,
                       (unsigned long long)n, MAX_TOKENS);
    t->n_vocab = (int)n;
    t->names = need(n, sizeof *t->names);
    token_table_init(&t->by_name, n);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        gguf_string *s = &t->names[id];
        if (!gguf_array_string(g, key, (uint64_t)id, s) || !is_utf8(*s))
            return err_set(e, ERR_FORMAT, key, "%s: token %d is not UTF-8", key, id);
        if (!s->n) // padding of some converters: never made from text
            continue;
        int32_t same = vocab_find(t, s->p, s->n);
        if (same >= 0)
            return err_set(e, ERR_FORMAT, key, "%s: tokens %d and %d are both \"%.*s\"", key, same,
                           id, (int)(s->n < 64 ? s->n : 64), s->p);
        token_table_put(&t->by_name, vocab_hash(t, s->p, s->n), id);
    }
    return 0;
}

static bool is_spelt(gguf_string s, const char *name) {
    return s.n == strlen(name) && !memcmp(s.p, name, s.n);
}

static bool is_one_of(gguf_string s, const char *const *names) {
    for (; *names; names++)
        if (is_spelt(s, *names))
            return true;
    return false;
}

// Converters marked some control tokens as user-defined or normal; what text may never spell is
// decided here: the marks of turns whatever their type, and of what was added also <|anything|> and
// the marks of fill-in-the-middle.
static bool looks_like_control(gguf_string s, uint64_t kind) {
    static const char *const turns[] = {"<|im_start|>",      "<|im_end|>",
                                        "<|endoftext|>",     "<|eot_id|>",
                                        "<|eom_id|>",        "<|start_header_id|>",
                                        "<|end_header_id|>", "<|begin_of_text|>",
                                        "<|end_of_text|>",   NULL};
    static const char *const marks[] = {"<fim_prefix>",
                                        "<fim_suffix>",
                                        "<fim_middle>",
                                        "<fim_pad>",
                                        "<repo_name>",
                                        "<file_sep>",
                                        "<reponame>",
                                        "<filename>",
                                        "\u2581<PRE>",
                                        "\u2581<SUF>",
                                        "\u2581<MID>",
                                        "\u2581<EOT>",
                                        NULL};
    if (is_one_of(s, turns))
        return true;
    bool bars = s.n > 4 && !memcmp(s.p, "<|", 2) && !memcmp(s.p + s.n - 2, "|>", 2);
    return kind == TOKEN_USER_DEFINED && (bars || is_one_of(s, marks));
}

static int read_kinds(tokenizer *t, const gguf *g, err *e) {
    const char *key = "tokenizer.ggml.token_type";
    gguf_type element;
    uint64_t n, kind;
    if (!gguf_array(g, key, &element, &n) || n != (uint64_t)t->n_vocab)
        return err_set(e, ERR_FORMAT, key,
                       "%s is missing or has another length than the %d tokens; without it control "
                       "tokens cannot be told from text",
                       key, t->n_vocab);
    t->kind = need(n, 1);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        if (!gguf_array_u64(g, key, (uint64_t)id, &kind) || kind < TOKEN_NORMAL ||
            kind > TOKEN_BYTE)
            return err_set(e, ERR_FORMAT, key, "%s: token %d has no known type", key, id);
        t->kind[id] = looks_like_control(t->names[id], kind) ? TOKEN_CONTROL : (uint8_t)kind;
    }
    return 0;
}

bool vocab_is_control(const tokenizer *t, int32_t id) {
    return t->kind[id] == TOKEN_CONTROL || t->kind[id] == TOKEN_UNKNOWN;
}

// Names of added tokens are text as they stand; the others are spelt in the byte-level alphabet,
// or, as Hugging Face's decoder takes them, stand for themselves when they are not.
static void make_pieces(tokenizer *t) {
    size_t total = 0;
    for (int32_t id = 0; id < t->n_vocab; id++)
        total += t->names[id].n;
    t->pieces = need(total, 1);
    t->piece_at = need((size_t)t->n_vocab + 1, sizeof *t->piece_at);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        gguf_string s = t->names[id];
        char *to = t->pieces + t->piece_at[id];
        size_t n = s.n;
        bool added = vocab_is_control(t, id) || t->kind[id] == TOKEN_USER_DEFINED;
        if (added || !vocab_decode_name(s.p, s.n, to, &n))
            memcpy(to, s.p, n = s.n);
        t->piece_at[id + 1] = t->piece_at[id] + n;
    }
}

// Small vocabularies lack bytes that their training text had not (SmolLM2: a few control characters
// and bytes of UTF-8 planes nobody uses). Hugging Face drops those bytes, and so does bpe_word;
// a vocabulary that lacks bytes of ordinary text is not a byte-level one.
static int find_bytes(tokenizer *t, err *e) {
    for (int b = 0; b < 256; b++) {
        utf8proc_uint8_t name[4];
        size_t n = (size_t)utf8proc_encode_char(char_of_byte(b), name);
        int32_t id = vocab_find(t, (const char *)name, n);
        t->bytes[b] = id >= 0 && !vocab_is_control(t, id) ? id : -1;
        bool ordinary = (b >= 32 && b < 127) || b == '\t' || b == '\n' || b == '\r' ||
                        (b >= 0x80 && b <= 0xbf) || (b >= 0xc2 && b <= 0xef);
        if (ordinary && t->bytes[b] < 0)
            return err_set(e, ERR_FORMAT, "tokenizer.ggml.tokens",
                           "tokenizer.ggml.tokens has no token for the byte 0x%02x: not a "
                           "byte-level vocabulary",
                           (unsigned)b);
    }
    return 0;
}

// ---- added tokens in text

static int by_bytes(gguf_string a, gguf_string b) {
    int c = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
    return c ? c : a.n < b.n ? -1 : a.n > b.n;
}

static int compare_names(const void *a, const void *b, void *names) {
    const gguf_string *s = names;
    return by_bytes(s[*(const int32_t *)a], s[*(const int32_t *)b]);
}

static int list_names(tokenizer *t, name_list *l, bool with_controls, err *e) {
    l->ids = need((size_t)t->n_vocab, sizeof *l->ids);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        gguf_string s = t->names[id];
        if (!s.n ||
            !(t->kind[id] == TOKEN_USER_DEFINED || (with_controls && vocab_is_control(t, id))))
            continue;
        if (s.n > TOKENIZER_NAME_MAX)
            return err_set(
                e, ERR_FORMAT, "tokenizer.ggml.tokens",
                "tokenizer.ggml.tokens: the added token %d has %zu bytes; %d are possible", id, s.n,
                TOKENIZER_NAME_MAX);
        l->ids[l->n++] = id;
        l->starts[(unsigned char)s.p[0]] = true;
    }
    qsort_r(l->ids, l->n, sizeof *l->ids, compare_names, t->names);
    return 0;
}

// The first of ids[low..high) whose byte at `depth` is at least `byte`; names as short as depth
// come first.
static size_t lower(const tokenizer *t, const name_list *l, size_t low, size_t high, size_t depth,
                    int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        gguf_string s = t->names[l->ids[middle]];
        if (s.n <= depth || (unsigned char)s.p[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t vocab_match(const tokenizer *t, const name_list *l, const char *p, size_t n, size_t *used) {
    int32_t best = -1;
    size_t low = 0, high = l->n;
    if (!n || !l->starts[(unsigned char)p[0]])
        return -1;
    for (size_t depth = 0; depth < n && low < high; depth++) {
        int byte = (unsigned char)p[depth];
        low = lower(t, l, low, high, depth, byte);
        high = lower(t, l, low, high, depth, byte + 1);
        if (low < high && t->names[l->ids[low]].n == depth + 1) {
            best = l->ids[low];
            *used = depth + 1;
        }
    }
    return best;
}

int vocab_load(tokenizer *t, const gguf *g, err *e) {
    if (getrandom(&t->hash_seed, sizeof t->hash_seed, 0) != sizeof t->hash_seed)
        return err_set(e, ERR_IO, NULL, "getrandom: no random bytes");
    if (read_names(t, g, e) || read_kinds(t, g, e))
        return -1;
    make_pieces(t);
    if (find_bytes(t, e) || list_names(t, &t->controls, true, e))
        return -1;
    return list_names(t, &t->user_defined, false, e);
}

void vocab_release(tokenizer *t) {
    free(t->user_defined.ids);
    free(t->controls.ids);
    free(t->pieces);
    free(t->piece_at);
    free(t->kind);
    free(t->by_piece.slots);
    free(t->by_name.slots);
    free(t->names);
}

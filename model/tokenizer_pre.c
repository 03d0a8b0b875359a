// What happens to text before it is merged: normalisation where the tokenizer wants it (Qwen) and
// the cut into words by the pre-tokenizer's regular expression. The expressions are those of
// Hugging Face's tokenizers, compiled once with PCRE2; a call's memory is its bpe_scratch. Does not
// know added tokens (tokenizer.c takes them out before).
#include "model/tokenizer_internal.h"
#include <string.h>

// Hugging Face's letters, numbers and spaces are those of Unicode 16; PCRE2 10.42 knows Unicode 14
// and takes U+180E for a space. So spaces are listed, and what came since is added to \p{L} and
// \p{N}; in a later PCRE2 the additions say nothing new.
#define LETTERS                                                                                    \
    "\\p{L}\\x{1c89}\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"          \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}\\x{11240}"          \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}" \
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"          \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}"         \
    "\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"                     \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"          \
    "\\x{31350}-\\x{323af}"
#define NUMBERS                                                                                    \
    "\\p{N}\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"   \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"
// The step Digits of tokenizers takes its numbers from Unicode 17.
#define DIGITS NUMBERS "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}"

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define LETTERS_AND_NUMBERS(numbers)                                                               \
    "(?i:" CONTRACTIONS ")|[^\\r\\n" LETTERS NUMBERS "]?[" LETTERS "]+|" numbers                   \
    "| ?[^" SPACES LETTERS NUMBERS "]+[\\r\\n]*|[" SPACES "]*[\\r\\n]+"                            \
    "|[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+"

typedef struct pre_tokenizer {
    const char *names[4]; // values of tokenizer.ggml.pre
    const char *pattern;
    bool normalise, ignore_merges, adds_bos;
} pre_tokenizer;

static const pre_tokenizer kinds[] = {
    {{"gpt-2"},
     CONTRACTIONS "| ?[" LETTERS "]+| ?[" NUMBERS "]+| ?[^" SPACES LETTERS NUMBERS "]+"
                  "|[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+",
     false,
     false,
     false},
    // Digits(individual) first and GPT-2's expression on each stretch between them, in one: a space
    // does not join a number, and a run of spaces before one is not left by its last.
    {{"smollm", "starcoder"},
     CONTRACTIONS "| ?[" LETTERS "]+|[" DIGITS "]| ?[^" SPACES LETTERS DIGITS "]+"
                  "|[" SPACES "]+(?![^" SPACES DIGITS "])|[" SPACES "]+",
     false,
     false,
     false},
    {{"qwen2"}, LETTERS_AND_NUMBERS("[" NUMBERS "]"), true, false, false},
    {{"llama-bpe", "llama3", "llama-v3"},
     LETTERS_AND_NUMBERS("[" NUMBERS "]{1,3}"),
     false,
     true,
     true},
};

static const pre_tokenizer *find_kind(gguf_string name) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (const char *const *s = kinds[i].names; *s; s++)
            if (strlen(*s) == name.n && !memcmp(*s, name.p, name.n))
                return &kinds[i];
    return NULL;
}

static int compile(tokenizer *t, const char *pattern, err *e) {
    int code;
    PCRE2_SIZE at;
    t->pre = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                           PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &at, NULL);
    t->limits = pcre2_match_context_create(NULL);
    if (!t->pre || !t->limits) {
        PCRE2_UCHAR message[128] = "out of memory";
        if (!t->pre)
            pcre2_get_error_message(code, message, sizeof message);
        return err_set(e, ERR_INTERNAL, NULL, "the pre-tokenizer's expression: %s",
                       (const char *)message);
    }
    pcre2_jit_compile(t->pre, PCRE2_JIT_COMPLETE); // where it cannot, the interpreter works
    // No expression here backtracks more than once over a run; this is a second belt.
    pcre2_set_match_limit(t->limits, 100000000);
    return 0;
}

int pre_load(tokenizer *t, const gguf *g, err *e) {
    const char *key = "tokenizer.ggml.pre";
    gguf_string name;
    if (!gguf_get_string(g, key, &name))
        return err_set(e, ERR_UNSUPPORTED, key,
                       "%s is missing; it must be smollm, starcoder, qwen2, llama-bpe or gpt-2",
                       key);
    const pre_tokenizer *k = find_kind(name);
    if (!k)
        return err_set(e, ERR_UNSUPPORTED, key,
                       "%s \"%.*s\" is not known (smollm, starcoder, qwen2, llama-bpe, gpt-2)", key,
                       (int)(name.n < 64 ? name.n : 64), name.p);
    t->normalise = k->normalise;
    t->ignore_merges = k->ignore_merges;
    t->adds_bos = k->adds_bos;
    return compile(t, k->pattern, e);
}

void pre_release(tokenizer *t) {
    pcre2_match_context_free(t->limits);
    pcre2_code_free(t->pre);
}

int pre_encode(const tokenizer *t, bpe_scratch *s, const char *text, size_t n, token_list *out,
               err *e) {
    if (t->normalise && nfc_may_change(text, n)) {
        buf_clear(&s->normalised);
        nfc_put(text, n, &s->normalised);
        text = s->normalised.data;
        n = s->normalised.len;
    }
    const size_t *ends = pcre2_get_ovector_pointer(s->match);
    for (size_t at = 0; at < n; at = ends[1]) {
        int rc =
            pcre2_match(t->pre, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, s->match, t->limits);
        if (rc < 0 || ends[1] <= at)
            return err_set(e, ERR_INTERNAL, NULL, "the pre-tokenizer stopped at byte %zu: %d", at,
                           rc);
        bpe_word(t, s, text + at, ends[1] - at, out);
    }
    return 0;
}

// Tokenizer: whatever vocabulary a file has, opening it ends in a tokenizer or a message; whatever
// the text, its tokens say it again and untrusted text has no control token.
//
// Input: a byte that chooses the pre-tokenizer, lines that make the vocabulary (t TOKEN, c CONTROL,
// u USER-DEFINED, n TYPE-AND-NAME, m LEFT RIGHT), an empty line, the text.
#include "model/tokenizer.h"
#include "tests/fuzz/tiny_vocabulary.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const char *const pres[] = {"gpt-2", "smollm", "qwen2", "llama-bpe"};

typedef struct text {
    const char *p;
    size_t n;
} text;

// The text that is left when the vocabulary was read.
static text read_vocabulary(tiny_vocabulary *v, text in) {
    while (in.n) {
        const char *end = memchr(in.p, '\n', in.n);
        size_t n = end ? (size_t)(end - in.p) : in.n;
        char kind = n ? in.p[0] : '\0';
        const char *name = in.p + 2;
        size_t n_name = n >= 2 ? n - 2 : 0;
        in.p += end ? n + 1 : n;
        in.n -= end ? n + 1 : n;
        if (!kind)
            break;
        if (kind == 'm') {
            tiny_put(&v->merges, name, n_name);
            v->n_merges++;
        } else {
            uint32_t type = kind == 'c' ? 3 : kind == 'u' ? 4 : kind == 'n' ? (uint8_t)in.n : 1;
            tiny_token(v, name, n_name, type);
        }
    }
    return in;
}

static bool is_utf8(text t) {
    while (t.n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)t.p, (utf8proc_ssize_t)t.n, &c);
        if (used <= 0)
            return false;
        t.p += used;
        t.n -= (size_t)used;
    }
    return true;
}

static void must(bool holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void check_prefixes(text t) {
    bool valid = is_utf8(t);
    for (size_t n = 0; n <= t.n && n < 64; n++) {
        size_t whole = utf8_whole(t.p, n);
        must(whole <= n && n - whole < 4, "utf8_whole leaves out at most three bytes");
        must(!valid || is_utf8((text){t.p, whole}), "whole characters are valid");
    }
    must(!valid || utf8_whole(t.p, t.n) == t.n, "a finished text is whole");
}

static void check_text(const tokenizer *t, text in, bool trusted, bool exact) {
    token_list ids = {0};
    buf back = {0};
    err e = {0};
    int rc = tokenizer_encode(t, in.p, in.n, trusted, &ids, &e);
    must(!rc == is_utf8(in), "UTF-8, and nothing else, is tokenised");
    must(!rc || e.message[0], "an error has a message");
    for (size_t i = 0; i < ids.n; i++) {
        size_t n;
        must(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_n_vocab(t), "ids are of the vocabulary");
        must(trusted || !tokenizer_is_control(t, ids.ids[i]), "users have no control tokens");
        const char *p = tokenizer_piece(t, ids.ids[i], true, &n);
        buf_put(&back, p, n);
    }
    if (!rc && exact)
        must(back.len == in.n && !memcmp(back.data ? back.data : "", in.p, in.n),
             "tokens say the text again");
    buf_release(&back);
    token_list_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size)
        return 0;
    const char *pre = pres[data[0] % 4];
    tiny_vocabulary v = {.n_tokens = 0};
    tiny_bytes(&v);
    text rest = read_vocabulary(&v, (text){(const char *)data + 1, size - 1});
    buf file = {0};
    tiny_write(&v, pre, NULL, 0, &file);
    gguf *g = NULL;
    tokenizer *t = NULL;
    err e = {0};
    check_prefixes(rest);
    if (!gguf_open_memory(file.data, file.len, &g, &e) && !tokenizer_open(g, &t, &e)) {
        check_text(t, rest, false, data[0] % 4 != 2); // Qwen's is normalised
        check_text(t, rest, true, data[0] % 4 != 2);
    } else {
        must(e.message[0], "an error has a message");
    }
    tokenizer_close(t);
    gguf_close(g);
    buf_release(&file);
    tiny_release(&v);
    return 0;
}

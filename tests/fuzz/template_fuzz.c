// Chat templates: any text is recognised or refused with a message; any conversation renders with
// each template, and what clients wrote adds no control token.
//
// Input: bytes up to the first 0xff are a template text; then messages, each a byte for the role
// and bytes up to the next 0xff.
#include "model/template.h"
#include "tests/fuzz/tiny_vocabulary.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MESSAGES 32

static const char *const names[] = {"chatml",         "smollm", "qwen2",
                                    "qwen2.5",        "qwen3",  "qwen3-thinking",
                                    "qwen3-no-think", "llama3", "llama3.1"};
static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "other"};
static const char *const control[] = {"<|im_start|>",        "<|im_end|>", "<|begin_of_text|>",
                                      "<|start_header_id|>", "<|eot_id|>", "<|end_header_id|>"};

static void must(bool holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static tokenizer *open_vocabulary(void) {
    tiny_vocabulary v = {.n_tokens = 0};
    static buf file; // both are borrowed by the tokenizer for good
    static gguf *g;
    tokenizer *t = NULL;
    err e = {0};
    tiny_bytes(&v);
    for (size_t i = 0; i < sizeof control / sizeof *control; i++)
        tiny_token(&v, control[i], strlen(control[i]), 3);
    tiny_token(&v, "<think>", 7, 4);
    tiny_write(&v, "qwen2", NULL, 0, &file);
    must(!gguf_open_memory(file.data, file.len, &g, &e) && !tokenizer_open(g, &t, &e), e.message);
    tiny_release(&v);
    return t;
}

static void detect(const char *text, size_t n) {
    tiny_vocabulary v = {.n_tokens = 0};
    buf file = {0};
    gguf *g = NULL;
    const chat_template *t = NULL;
    err e = {0};
    tiny_bytes(&v);
    tiny_write(&v, "qwen2", n ? text : "", n, &file);
    if (gguf_open_memory(file.data, file.len, &g, &e) || template_detect(g, &t, &e))
        must(e.message[0], "an error has a message");
    else
        must(template_by_name(template_name(t)) == t, "what is found has a name");
    gguf_close(g);
    buf_release(&file);
    tiny_release(&v);
}

// Control tokens in our own segments.
static size_t count_control(const tokenizer *t, const segment *s, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        token_list ids = {0};
        if (s[i].trusted)
            (void)tokenizer_encode_segments(t, &s[i], 1, &ids, NULL);
        for (size_t k = 0; k < ids.n; k++)
            count += tokenizer_is_control(t, ids.ids[k]);
        token_list_release(&ids);
    }
    return count;
}

static void render(const tokenizer *t, const char *name, const chat_message *m, size_t n) {
    arena a;
    arena_init(&a);
    segment_list l = {0};
    token_list ids = {0};
    err e = {0};
    if (template_render(template_by_name(name), m, n, n % 2, &a, &l, &e)) {
        must(e.message[0] && !strncmp(e.param, "messages", 8), "a refusal names the message");
    } else if (!template_encode(t, &l, &ids, &e)) {
        size_t ours = count_control(t, l.items, l.n), all = 0;
        for (size_t i = 0; i < ids.n; i++)
            all += tokenizer_is_control(t, ids.ids[i]);
        must(ours == all, "control tokens are the template's");
    } else {
        must(e.code == ERR_INVALID, "only text that is not UTF-8 is refused");
    }
    token_list_release(&ids);
    arena_release(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tokenizer *t;
    if (!t)
        t = open_vocabulary();
    const char *p = (const char *)data, *end = p + size;
    const char *cut = memchr(p, 0xff, size);
    detect(p, cut ? (size_t)(cut - p) : size);
    chat_message messages[MAX_MESSAGES];
    size_t n = 0;
    for (p = cut ? cut + 1 : end; p < end && n < MAX_MESSAGES; p = cut + 1) {
        const char *role = roles[(unsigned char)*p++ % 6];
        cut = memchr(p, 0xff, (size_t)(end - p));
        if (!cut)
            cut = end;
        messages[n++] = (chat_message){.role = role, .content = p, .n_content = (size_t)(cut - p)};
        if (cut == end)
            break;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        render(t, names[i], messages, n);
    return 0;
}

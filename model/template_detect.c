// Which of our templates a file's tokenizer.chat_template (Jinja) is. The text is brought into a
// form without spelling differences (spaces, quotes, escapes, ['x'] for .x, joined literals), and
// a template is recognised by everything that decides its output; one that does more than we would
// is not taken for it. Stateless; any thread. Does not evaluate Jinja.
#include "model/template_internal.h"
#include <string.h>

#define MAX_TEMPLATE_BYTES (1u << 20)

// ---- the plain form

typedef struct reader {
    const char *p, *end;
    buf *out;
} reader;

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static bool at_text(const reader *r, const char *s) {
    size_t n = strlen(s);
    return (size_t)(r->end - r->p) >= n && !memcmp(r->p, s, n);
}

static bool ends_with(const buf *b, const char *s) {
    size_t n = strlen(s);
    return b->len >= n && !memcmp(b->data + b->len - n, s, n);
}

static void skip_spaces(reader *r) {
    while (r->p < r->end && is_space(*r->p))
        r->p++;
}

// A literal: 'text', its escapes undone; after another literal and a plus it continues that one;
// an index becomes an attribute.
static void read_literal(reader *r, bool after_literal) {
    char quote = *r->p++;
    bool index = ends_with(r->out, "[");
    if (after_literal && ends_with(r->out, "'+"))
        r->out->len -= 2;
    else
        buf_puts(r->out, "'");
    size_t start = r->out->len;
    while (r->p < r->end && *r->p != quote) {
        char c = *r->p++;
        if (c == '\\' && r->p < r->end) {
            c = *r->p++;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        buf_put(r->out, &c, 1);
    }
    if (r->p < r->end)
        r->p++;
    skip_spaces(r);
    if (index && at_text(r, "]")) { // "['x" to ".x"
        r->p++;
        size_t n = r->out->len - start;
        memmove(r->out->data + start - 1, r->out->data + start, n);
        r->out->data[start - 2] = '.';
        r->out->len--;
        return;
    }
    buf_puts(r->out, "'");
}

// How many bytes end the tag here ("}}" or "-}}"); 0: it goes on.
static size_t tag_end(const reader *r, const char *end) {
    bool trims = at_text(r, "-");
    reader after = {r->p + trims, r->end, r->out};
    return at_text(&after, end) ? 2u + trims : 0;
}

// The inside of {{ }} or {% %}, and its end.
static void read_tag(reader *r, const char *end) {
    bool literal = false, plus = false; // what was read last; plus: after a literal
    while (r->p < r->end && !tag_end(r, end)) {
        char c = *r->p;
        if (is_space(c)) {
            r->p++;
            continue;
        }
        bool quoted = c == '\'' || c == '"';
        if (quoted)
            read_literal(r, plus);
        else
            buf_put(r->out, r->p++, 1);
        plus = c == '+' && literal;
        literal = quoted;
    }
    r->p += tag_end(r, end);
    buf_puts(r->out, end);
}

static void make_plain(gguf_string text, buf *out) {
    reader r = {text.p, text.p + text.n, out};
    while (r.p < r.end) {
        if (at_text(&r, "{#")) {
            const char *end = memmem(r.p, (size_t)(r.end - r.p), "#}", 2);
            r.p = end ? end + 2 : r.end;
        } else if (at_text(&r, "{{") || at_text(&r, "{%")) {
            const char *end = r.p[1] == '{' ? "}}" : "%}";
            buf_put(out, r.p, 2);
            r.p += 2;
            if (at_text(&r, "-"))
                r.p++;
            read_tag(&r, end);
        } else {
            if (!is_space(*r.p))
                buf_put(out, r.p, 1);
            r.p++;
        }
    }
    buf_put(out, "", 0);
}

// ---- what to look for

#define CHATML_TURN "{{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}}"
#define CHATML_ANSWER "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}"
#define CHATML_SYSTEM "{{'<|im_start|>system\n'+messages[0].content+'<|im_end|>\n'}}"
#define NO_SYSTEM "{%ifloop.firstandmessages[0].role!='system'%}"
#define TOOL_TURN "{{'\n<tool_response>\n'}}"
#define QWEN3_ANSWER                                                                               \
    "+'\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')}}"
#define QWEN3_KEPT "{%ifloop.lastor(notloop.lastandreasoning_content)%}"
#define QWEN3_CUT "split('</think>')[-1].lstrip('\n')"
#define LLAMA_TURN                                                                                 \
    "'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'"
#define LLAMA_ANSWER                                                                               \
    "{%ifadd_generation_prompt%}{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}"

typedef struct rule {
    const char *name;
    const char *has[8], *lacks[8];
} rule;

static const rule rules[] = {
    {"chatml",
     {CHATML_TURN, CHATML_ANSWER},
     {"system", "tool", "think", "trim", "_token", "raise_exception", "message.role==", "strip"}},
    {"smollm",
     {CHATML_TURN, CHATML_ANSWER, NO_SYSTEM,
      "{{'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n'}}"},
     {"tool", "think", "trim", "_token", "raise_exception", "message.role=="}},
    {"qwen2",
     {CHATML_TURN, CHATML_ANSWER, NO_SYSTEM,
      "{{'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'}}"},
     {"tool", "think", "trim", "_token", "raise_exception", "message.role=="}},
    {"qwen2.5",
     {CHATML_TURN, CHATML_ANSWER, CHATML_SYSTEM, TOOL_TURN,
      "{{'<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
      "assistant.<|im_end|>\n'}}"},
     {"think", "trim", "strip"}},
    {"qwen3",
     {CHATML_ANSWER, CHATML_SYSTEM, TOOL_TURN, QWEN3_ANSWER, QWEN3_KEPT, QWEN3_CUT,
      "ns.last_query_index"},
     {"You are a", "trim"}},
    {"qwen3-thinking",
     {"{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n<think>\n'}}", CHATML_SYSTEM, TOOL_TURN,
      QWEN3_ANSWER, QWEN3_KEPT, QWEN3_CUT, "ns.last_query_index"},
     {"You are a", "trim"}},
    {"llama3",
     {LLAMA_TURN, LLAMA_ANSWER, "bos_token"},
     {"tool", "system", "date", "raise_exception", "think"}},
    {"llama3.1",
     {LLAMA_TURN, LLAMA_ANSWER, "{{bos_token}}", "'Cutting Knowledge Date: December 2023\n'",
      "'Today Date: '+date_string+'\n\n'", "date_string='26 Jul 2024'",
      "system_message=messages[0].content|trim", "{{message.content|tojson}}"},
     {"think"}},
};

static bool fits(const rule *r, const buf *text) {
    for (size_t i = 0; i < 8 && r->has[i]; i++)
        if (!memmem(text->data, text->len, r->has[i], strlen(r->has[i])))
            return false;
    for (size_t i = 0; i < 8 && r->lacks[i]; i++)
        if (memmem(text->data, text->len, r->lacks[i], strlen(r->lacks[i])))
            return false;
    return true;
}

int template_detect(const gguf *g, const chat_template **out, err *e) {
    const char *key = "tokenizer.chat_template";
    gguf_string text;
    if (!gguf_get_string(g, key, &text))
        return err_set(e, ERR_UNSUPPORTED, key,
                       "%s is missing; set [model NAME] template= to one of %s", key,
                       template_names());
    if (text.n > MAX_TEMPLATE_BYTES)
        return err_set(e, ERR_FORMAT, key, "%s has %zu bytes; %u are possible", key, text.n,
                       MAX_TEMPLATE_BYTES);
    buf plain = {0};
    make_plain(text, &plain);
    const chat_template *found = NULL;
    for (size_t i = 0; i < sizeof rules / sizeof *rules && !found; i++)
        if (fits(&rules[i], &plain))
            found = template_by_name(rules[i].name);
    buf_release(&plain);
    if (!found)
        return err_set(e, ERR_UNSUPPORTED, key,
                       "%s is none that is built in; set [model NAME] template= to one of %s", key,
                       template_names());
    *out = found;
    return 0;
}

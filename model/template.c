// Chat templates as C functions, one per family: they write messages as segments, our own text
// trusted, the client's not. Stateless; any thread; the memory is the request's arena. Does not
// read a file's template text (template_detect.c).
#include "model/template_internal.h"
#include <stdio.h>
#include <string.h>

typedef struct slice {
    const char *p;
    size_t n;
} slice;

typedef struct writer {
    const chat_template *t;
    const chat_message *messages;
    size_t n;
    bool add_generation;
    arena *a;
    segment_list *out;
} writer;

// ---- writing

void segment_put(arena *a, segment_list *l, const char *text, size_t n, bool trusted) {
    if (!n)
        return;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 16;
        segment *items = arena_alloc(a, cap * sizeof *items);
        if (l->n)
            memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = (segment){text, n, trusted};
}

static void ours(writer *w, const char *text) {
    segment_put(w->a, w->out, text, strlen(text), true);
}

static void theirs(writer *w, slice s) { segment_put(w->a, w->out, s.p, s.n, false); }

static slice content_of(const chat_message *m) {
    return (slice){m->n_content ? m->content : "", m->n_content};
}

static bool has_role(const chat_message *m, const char *role) { return !strcmp(m->role, role); }

// "developer" is OpenAI's newer name for system; no family here was trained with it.
static bool is_system(const chat_message *m) {
    return has_role(m, "system") || has_role(m, "developer");
}

static const char *role_of(const chat_message *m) {
    return is_system(m) ? "system" : has_role(m, "user") ? "user" : "assistant";
}

// ---- what Jinja's filters do to a text

static slice strip_newlines_left(slice s) {
    while (s.n && s.p[0] == '\n')
        s = (slice){s.p + 1, s.n - 1};
    return s;
}

static slice strip_newlines_right(slice s) {
    while (s.n && s.p[s.n - 1] == '\n')
        s.n--;
    return s;
}

// The space at the front of s (Python's str.isspace), in bytes; 0: none.
static size_t space_at(const char *p, size_t n) {
    static const char *const wide[] = {"\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001",
                                       "\u2002",   "\u2003", "\u2004", "\u2005", "\u2006",
                                       "\u2007",   "\u2008", "\u2009", "\u200a", "\u2028",
                                       "\u2029",   "\u202f", "\u205f", "\u3000"};
    if (!n)
        return 0;
    if (*p == ' ' || (*p >= '\t' && *p <= '\r') || (*p >= 0x1c && *p <= 0x1f))
        return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (n >= strlen(wide[i]) && !memcmp(p, wide[i], strlen(wide[i])))
            return strlen(wide[i]);
    return 0;
}

static slice trim(slice s) {
    for (size_t k; (k = space_at(s.p, s.n));)
        s = (slice){s.p + k, s.n - k};
    for (bool found = true; found;) {
        found = false;
        for (size_t k = 1; k <= 3 && k <= s.n && !found; k++)
            if (space_at(s.p + s.n - k, k) == k) {
                s.n -= k;
                found = true;
            }
    }
    return s;
}

static bool starts_with(slice s, const char *text) {
    return s.n >= strlen(text) && !memcmp(s.p, text, strlen(text));
}

static bool ends_with(slice s, const char *text) {
    size_t n = strlen(text);
    return s.n >= n && !memcmp(s.p + s.n - n, text, n);
}

static const char *find_first(slice s, const char *text) {
    return memmem(s.p, s.n, text, strlen(text));
}

// What follows the last `text` in s; all of s when there is none.
static slice after_last(slice s, const char *text) {
    for (const char *at; (at = find_first(s, text));) {
        const char *next = at + strlen(text);
        s = (slice){next, (size_t)(s.p + s.n - next)};
    }
    return s;
}

// ---- ChatML: SmolLM2 and Qwen up to 2.5

static void open_turn(writer *w, const char *role) {
    ours(w, "<|im_start|>");
    ours(w, role);
    ours(w, "\n");
}

static void turn(writer *w, const char *role, slice content) {
    open_turn(w, role);
    theirs(w, content);
    ours(w, "<|im_end|>\n");
}

// Tool answers stand together in one turn of the user.
static void tool_turn(writer *w, size_t i) {
    if (i == 0 || !has_role(&w->messages[i - 1], "tool"))
        ours(w, "<|im_start|>user");
    ours(w, "\n<tool_response>\n");
    theirs(w, content_of(&w->messages[i]));
    ours(w, "\n</tool_response>");
    if (i + 1 == w->n || !has_role(&w->messages[i + 1], "tool"))
        ours(w, "<|im_end|>\n");
}

static void write_chatml(writer *w) {
    if (w->t->default_system && !is_system(&w->messages[0]))
        turn(w, "system", (slice){w->t->default_system, strlen(w->t->default_system)});
    for (size_t i = 0; i < w->n; i++) {
        const chat_message *m = &w->messages[i];
        if (has_role(m, "tool"))
            tool_turn(w, i);
        else
            turn(w, role_of(m), content_of(m));
    }
    if (w->add_generation)
        open_turn(w, "assistant");
}

// ---- Qwen3: earlier thoughts are left out, those since the last question are kept

static size_t last_query(const writer *w) {
    for (size_t i = w->n; i-- > 0;) {
        slice s = content_of(&w->messages[i]);
        if (has_role(&w->messages[i], "user") &&
            !(starts_with(s, "<tool_response>") && ends_with(s, "</tool_response>")))
            return i;
    }
    return w->n - 1;
}

static void assistant_turn(writer *w, size_t i, size_t query) {
    slice content = content_of(&w->messages[i]), thoughts = {"", 0};
    const char *end = find_first(content, "</think>");
    if (end) {
        thoughts = strip_newlines_right((slice){content.p, (size_t)(end - content.p)});
        thoughts = strip_newlines_left(after_last(thoughts, "<think>"));
        content = strip_newlines_left(after_last(content, "</think>"));
    }
    open_turn(w, "assistant");
    if (i > query && (i + 1 == w->n || thoughts.n)) {
        ours(w, "<think>\n");
        theirs(w, strip_newlines_right(strip_newlines_left(thoughts)));
        ours(w, "\n</think>\n\n");
        content = strip_newlines_left(content);
    }
    theirs(w, content);
    ours(w, "<|im_end|>\n");
}

static void write_qwen3(writer *w) {
    size_t query = last_query(w);
    for (size_t i = 0; i < w->n; i++) {
        const chat_message *m = &w->messages[i];
        if (has_role(m, "tool"))
            tool_turn(w, i);
        else if (has_role(m, "assistant"))
            assistant_turn(w, i, query);
        else
            turn(w, role_of(m), content_of(m));
    }
    if (!w->add_generation)
        return;
    open_turn(w, "assistant");
    if (w->t->opening)
        ours(w, w->t->opening);
}

// ---- Llama 3

static void header(writer *w, const char *role) {
    ours(w, "<|start_header_id|>");
    ours(w, role);
    ours(w, "<|end_header_id|>\n\n");
}

static void llama_turn(writer *w, const char *role, slice content) {
    header(w, role);
    theirs(w, content);
    ours(w, "<|eot_id|>");
}

// The template writes a tool's answer as a JSON string.
static slice json_of(writer *w, slice s) {
    buf b = {0};
    buf_put_json(&b, s.p, s.n);
    slice made = {arena_dup(w->a, b.data, b.len), b.len};
    buf_release(&b);
    return made;
}

// Llama 3.1, 3.2, 3.3: a system turn stands first in any case. Today's date is the one the template
// holds for callers that have no clock: the same prompt gives the same answer on any day.
static size_t llama_preamble(writer *w) {
    bool given = is_system(&w->messages[0]);
    header(w, "system");
    ours(w, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (given)
        theirs(w, trim(content_of(&w->messages[0])));
    ours(w, "<|eot_id|>");
    return given;
}

static void write_llama3(writer *w) {
    ours(w, "<|begin_of_text|>");
    for (size_t i = w->t->preamble ? llama_preamble(w) : 0; i < w->n; i++) {
        const chat_message *m = &w->messages[i];
        if (has_role(m, "tool"))
            llama_turn(w, "ipython", json_of(w, content_of(m)));
        else
            llama_turn(w, role_of(m), trim(content_of(m)));
    }
    if (w->add_generation)
        header(w, "assistant");
}

// ---- the families

#define OPENED_THOUGHTS "<think>\n"
#define NO_THOUGHTS "<think>\n\n</think>\n\n"

const chat_template templates[] = {
    {.name = "chatml", .family = FAMILY_CHATML},
    {.name = "smollm",
     .family = FAMILY_CHATML,
     .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {.name = "qwen2", .family = FAMILY_CHATML, .default_system = "You are a helpful assistant."},
    {.name = "qwen2.5",
     .family = FAMILY_CHATML,
     .tools = true,
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "qwen3", .family = FAMILY_QWEN3, .tools = true},
    {.name = "qwen3-thinking", .family = FAMILY_QWEN3, .tools = true, .opening = OPENED_THOUGHTS},
    {.name = "qwen3-no-think", .family = FAMILY_QWEN3, .tools = true, .opening = NO_THOUGHTS},
    {.name = "llama3", .family = FAMILY_LLAMA3},
    {.name = "llama3.1", .family = FAMILY_LLAMA3, .tools = true, .preamble = true},
};
const size_t n_templates = sizeof templates / sizeof *templates;

const chat_template *template_by_name(const char *name) {
    for (size_t i = 0; i < n_templates; i++)
        if (!strcmp(templates[i].name, name))
            return &templates[i];
    return NULL;
}

const char *template_name(const chat_template *t) { return t->name; }

const char *template_names(void) {
    return "chatml, smollm, qwen2, qwen2.5, qwen3, qwen3-thinking, qwen3-no-think, llama3, "
           "llama3.1";
}

static int check_role(const chat_template *t, const chat_message *m, size_t i, err *e) {
    static const char *const known[] = {"system", "developer", "user", "assistant", "tool"};
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].role", i);
    for (size_t k = 0; m->role && k < sizeof known / sizeof *known; k++)
        if (has_role(m, known[k]))
            return k < 4 || t->tools
                       ? 0
                       : err_set(e, ERR_UNSUPPORTED, param,
                                 "this model (template %s) has no role 'tool'", t->name);
    return err_set(e, ERR_INVALID, param,
                   "role must be system, developer, user, assistant or tool, not '%.40s'",
                   m->role ? m->role : "");
}

int template_render(const chat_template *t, const chat_message *messages, size_t n,
                    bool add_generation, arena *a, segment_list *out, err *e) {
    if (!n)
        return err_set(e, ERR_INVALID, "messages", "messages must not be empty");
    for (size_t i = 0; i < n; i++)
        if (check_role(t, &messages[i], i, e))
            return -1;
    static void (*const write[])(writer *) = {[FAMILY_CHATML] = write_chatml,
                                              [FAMILY_QWEN3] = write_qwen3,
                                              [FAMILY_LLAMA3] = write_llama3};
    writer w = {t, messages, n, add_generation, a, out};
    write[t->family](&w);
    return 0;
}

int template_encode(const tokenizer *t, const segment_list *segments, token_list *out, err *e) {
    token_list made = {0};
    int32_t bos = tokenizer_bos(t);
    int rc = tokenizer_encode_segments(t, segments->items, segments->n, &made, e);
    if (!rc && tokenizer_adds_bos(t) && (!made.n || made.ids[0] != bos))
        token_list_push(out, bos);
    for (size_t i = 0; i < made.n && !rc; i++)
        token_list_push(out, made.ids[i]);
    token_list_release(&made);
    return rc;
}

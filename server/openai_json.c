// Two passes over a body: a scan of the raw bytes (depth, encoding, escapes), which also knows the
// path of what it stands at, then jansson. Owns nothing; any thread. jansson's own depth limit
// (2,048) and its silence about where a character is wrong are why the scan exists.
#include "server/openai_json.h"
#include "server/openai_text.h"
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct level {
    bool is_array;
    size_t index;    // of the element (array)
    const char *key; // of the member (object), raw; NULL before the first
    size_t n_key;
} level;

typedef struct scanner {
    const char *start, *p, *end;
    const char *last; // the last string, without quotes, raw
    size_t n_last;
    int depth, max_depth;
    level stack[OPENAI_JSON_DEPTH];
} scanner;

// A path that is too long ends in '~'.
static void mark_cut(json_path *path, int wanted) {
    if (wanted >= (int)sizeof path->text)
        path->text[sizeof path->text - 2] = '~';
}

json_path json_path_member(const char *base, const char *name) {
    json_path to;
    mark_cut(&to, snprintf(to.text, sizeof to.text, "%s%s%s", base, *base ? "." : "", name));
    return to;
}

json_path json_path_element(const char *base, size_t index) {
    json_path to;
    mark_cut(&to, snprintf(to.text, sizeof to.text, "%s[%zu]", base, index));
    return to;
}

// Where the scanner stands: messages[2].content. The innermost name may be replaced by the last
// string read (a name that was not followed by its value yet).
static json_path path_here(const scanner *s, bool use_last) {
    json_path at = {""};
    for (int i = 0; i < s->depth; i++) {
        const level *l = &s->stack[i];
        bool is_inner = use_last && i == s->depth - 1;
        const char *key = is_inner ? s->last : l->key;
        size_t n_key = is_inner ? s->n_last : l->n_key;
        if (l->is_array) {
            at = json_path_element(at.text, l->index);
        } else if (key) {
            char name[sizeof at.text];
            snprintf(name, sizeof name, "%.*s", (int)(n_key < 60 ? n_key : 60), key);
            at = json_path_member(at.text, name);
        }
    }
    return at;
}

static int fail_here(const scanner *s, const char *what, err *e) {
    json_path at = path_here(s, false);
    return err_set(e, ERR_INVALID, at.text, "The body holds %s at byte %zu%s%s.", what,
                   (size_t)(s->p - s->start), at.text[0] ? ", in " : "", at.text);
}

// Four hexadecimal digits at p, or -1.
static int hex4(const char *p, const char *end) {
    if (end - p < 4)
        return -1;
    int v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        v = v * 16 + digit;
    }
    return v;
}

// s->p stands at a backslash. A malformed escape is left to jansson, which words it well.
static int scan_escape(scanner *s, err *e) {
    size_t left = (size_t)(s->end - s->p);
    if (left < 2 || s->p[1] != 'u') {
        s->p += left < 2 ? left : 2;
        return 0;
    }
    int unit = hex4(s->p + 2, s->end);
    if (unit == 0)
        return fail_here(s, "the character NUL (\\u0000), which no text may hold,", e);
    bool is_high = unit >= 0xd800 && unit <= 0xdbff;
    bool is_low = unit >= 0xdc00 && unit <= 0xdfff;
    bool has_pair = false;
    if (is_high && left >= 12 && s->p[6] == '\\' && s->p[7] == 'u') {
        int next = hex4(s->p + 8, s->end);
        has_pair = next >= 0xdc00 && next <= 0xdfff;
    }
    if (is_low || (is_high && !has_pair))
        return fail_here(s, "a lone surrogate (half of a \\ud8xx\\udcxx pair)", e);
    s->p += unit < 0 ? 2 : has_pair ? 12 : 6;
    return 0;
}

// s->p stands behind the opening quote; ends behind the closing one.
static int scan_string(scanner *s, err *e) {
    const char *from = s->p;
    while (s->p < s->end && *s->p != '"') {
        if (*s->p == '\\') {
            if (scan_escape(s, e))
                return -1;
            continue;
        }
        bool is_ascii = (unsigned char)*s->p < 0x80; // most are; spares a call
        size_t n = is_ascii ? 1 : text_character(s->p, (size_t)(s->end - s->p));
        if (!n)
            return fail_here(s, "bytes that are not UTF-8", e);
        s->p += n;
    }
    s->last = from;
    s->n_last = (size_t)(s->p - from);
    if (s->p < s->end)
        s->p++;
    return 0;
}

static int scan_open(scanner *s, bool is_array, err *e) {
    if (s->depth == s->max_depth)
        return err_set(e, ERR_INVALID, NULL, "The JSON is nested deeper than %d levels.",
                       s->max_depth);
    s->stack[s->depth++] = (level){.is_array = is_array};
    return 0;
}

// Structure between strings. What is not well-formed is left to jansson.
static int scan_mark(scanner *s, char c, err *e) {
    level *top = s->depth ? &s->stack[s->depth - 1] : NULL;
    switch (c) {
    case '{':
    case '[':
        return scan_open(s, c == '[', e);
    case '}':
    case ']':
        s->depth -= top != NULL;
        return 0;
    case ':':
        if (top && !top->is_array) {
            top->key = s->last;
            top->n_key = s->n_last;
        }
        return 0;
    case ',':
        if (top)
            top->index++;
        return 0;
    default:
        return 0;
    }
}

static int scan(scanner *s, err *e) {
    while (s->p < s->end) {
        char c = *s->p++;
        if (c == '"' ? scan_string(s, e) : scan_mark(s, c, e))
            return -1;
    }
    return 0;
}

static scanner scanner_over(const char *p, size_t n, int max_depth) {
    return (scanner){.start = p, .p = p, .end = p + n, .max_depth = max_depth};
}

// jansson's refusal, with the path of the place it stopped at. scan() passed before.
static int parse_failed(const char *p, size_t n, const json_error_t *j, err *e) {
    size_t at = j->position < 0 ? 0 : (size_t)j->position < n ? (size_t)j->position : n;
    scanner s = scanner_over(p, at, OPENAI_JSON_DEPTH);
    scan(&s, NULL);
    enum json_error_code code = json_error_code(j);
    if (code == json_error_duplicate_key) {
        json_path path = path_here(&s, true);
        return err_set(e, ERR_INVALID, path.text, "'%s' is given twice.", path.text);
    }
    if (code == json_error_numeric_overflow) {
        json_path path = path_here(&s, false);
        return err_set(e, ERR_INVALID, path.text, "'%s' is a number out of range.", path.text);
    }
    return err_set(e, ERR_INVALID, NULL, "The body is not valid JSON: %s (line %d, column %d).",
                   j->text, j->line, j->column);
}

int openai_json_parse(const char *p, size_t n, int max_depth, json_t **out, err *e) {
    scanner s = scanner_over(p, n, max_depth < OPENAI_JSON_DEPTH ? max_depth : OPENAI_JSON_DEPTH);
    if (n == 0)
        return err_set(e, ERR_INVALID, NULL, "The body is empty; it must be a JSON object.");
    if (scan(&s, e))
        return -1;
    json_error_t j;
    json_t *root = json_loadb(p, n, JSON_REJECT_DUPLICATES, &j);
    if (!root)
        return parse_failed(p, n, &j, e);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(e, ERR_INVALID, NULL, "The body must be a JSON object.");
    }
    *out = root;
    return 0;
}

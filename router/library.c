// The Lua sources as bytes of the binary, and their way into Redis. Owns nothing but constants; any
// thread.
#include "router/library.h"
#include <string.h>

__asm__(".section .rodata\n"
        "library_queue_text: .incbin \"router/queue.lua\"\n"
        "library_queue_end: .byte 0\n"
        "library_quota_text: .incbin \"router/quota.lua\"\n"
        "library_quota_end: .byte 0\n"
        ".previous\n");
extern const char library_queue_text[], library_queue_end[], library_quota_text[],
    library_quota_end[];

static const char *name_of(library l) {
    return l == LIBRARY_QUEUE ? "tiergate_queue2" : "tiergate3";
}

const char *library_source(library l, size_t *n) {
    const char *text = l == LIBRARY_QUEUE ? library_queue_text : library_quota_text;
    *n = (size_t)((l == LIBRARY_QUEUE ? library_queue_end : library_quota_end) - text);
    return text;
}

bool library_is_missing(const redis_value *v) {
    size_t n;
    const char *text = redis_value_kind(v) == REDIS_ERROR ? redis_value_str(v, &n) : NULL;
    return text && memmem(text, n, "Function not found", strlen("Function not found")) != NULL;
}

// FUNCTION LIST answers [[library_name, N, engine, E, functions, [...], library_code, TEXT]].
static bool has_source(const redis_value *list, const char *text, size_t n_text) {
    const redis_value *entry = redis_value_at(list, 0);
    for (size_t i = 0; i + 1 < redis_value_len(entry); i += 2) {
        size_t n;
        const char *code = redis_value_str(redis_value_at(entry, i + 1), &n);
        if (redis_value_is(redis_value_at(entry, i), "library_code"))
            return code && n == n_text && memcmp(code, text, n) == 0;
    }
    return false;
}

int library_load(redis *r, library l, err *e) {
    size_t n;
    const char *text = library_source(l, &n);
    const char *list[] = {"FUNCTION", "LIST", "LIBRARYNAME", name_of(l), "WITHCODE"};
    const char *load[] = {"FUNCTION", "LOAD", "REPLACE", text};
    const size_t load_n[] = {8, 4, 7, n};
    redis_reply_box *box = NULL;
    if (redis_call(r, 5, list, NULL, &box, e))
        return -1;
    bool is_there = has_source(redis_reply_value(box), text, n);
    redis_reply_free(box);
    if (is_there)
        return 0;
    if (redis_call(r, 4, load, load_n, &box, e))
        return -1;
    int rc = 0;
    if (redis_value_kind(redis_reply_value(box)) == REDIS_ERROR)
        rc = err_set(e, ERR_DEPENDENCY, NULL, "Redis refused the library %s: %s", name_of(l),
                     redis_value_str(redis_reply_value(box), NULL));
    redis_reply_free(box);
    return rc;
}

// The reply's codec. Owns nothing; any thread. Decoding checks every count against the bytes left
// and that texts are whole UTF-8, because they go into clients' JSON as they are; positions and
// fences are compared by the request (router/request_run.c).
#include "router/reply.h"
#include "base/cursor.h"
#include "router/job.h"
#include "router/wire.h"
#include <math.h>
#include <string.h>
#include <utf8proc.h>

#define VERSION 2
#define FLAGS_ALL                                                                                  \
    (REPLY_CLAIM | REPLY_HOLD | REPLY_PREFILLED | REPLY_LAST | REPLY_REFUSED | REPLY_PROMPT |      \
     REPLY_FAILED | REPLY_AGAIN | REPLY_BEGUN)
#define FRAME_LEAST_BYTES 61 // of a frame without tokens and text
#define MAX_TOP 20

static bool has_logprobs(const reply_frame *f) {
    for (int i = 0; i < f->n_tokens; i++)
        if (!isnan(f->tokens[i].logprob) || f->tokens[i].n_top > 0)
            return true;
    return false;
}

static void put_token(buf *out, const reply_token *t, bool logprobs) {
    buf_put_u32(out, (uint32_t)t->id);
    if (!logprobs)
        return;
    buf_put_f32(out, t->logprob);
    buf_put_u8(out, (uint8_t)t->n_top);
    for (int i = 0; i < t->n_top; i++) {
        buf_put_u32(out, (uint32_t)t->top[i].id);
        buf_put_f32(out, t->top[i].logprob);
    }
}

static void put_frame(buf *out, const reply_frame *f) {
    bool logprobs = has_logprobs(f);
    wire_put_uuid(out, f->id);
    buf_put_u8(out, (uint8_t)f->choice);
    buf_put_u32(out, (uint32_t)f->attempt);
    buf_put_u64(out, f->run);
    buf_put_u16(out, (uint16_t)f->flags);
    buf_put_u8(out, (uint8_t)f->finish);
    buf_put_u32(out, (uint32_t)f->from);
    buf_put_u32(out, (uint32_t)f->cached);
    buf_put_u32(out, (uint32_t)f->queue_ms);
    buf_put_u32(out, (uint32_t)f->queue_steps);
    buf_put_u32(out, (uint32_t)f->engine_us);
    buf_put_bytes(out, f->text, f->n_text);
    buf_put_u8(out, logprobs);
    buf_put_u32(out, (uint32_t)f->n_tokens);
    for (int i = 0; i < f->n_tokens; i++)
        put_token(out, &f->tokens[i], logprobs);
}

void reply_encode(const reply *r, buf *out) {
    buf_put_u8(out, VERSION);
    buf_put_u64(out, r->worker);
    buf_put_u32(out, (uint32_t)r->n_frames);
    for (int i = 0; i < r->n_frames; i++)
        put_frame(out, &r->frames[i]);
}

// ---- decoding

static bool is_utf8(const char *text, size_t n) {
    for (utf8proc_ssize_t at = 0, step; at < (utf8proc_ssize_t)n; at += step) {
        utf8proc_int32_t c;
        step = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)n - at, &c);
        if (step <= 0)
            return false;
    }
    return true;
}

static int read_natural(cursor *c) { // 0..INT32_MAX, else the cursor fails
    int32_t v = (int32_t)cursor_u32(c);
    if (v < 0)
        c->failed = true;
    return c->failed ? 0 : v;
}

static void read_top(cursor *c, arena *a, reply_token *t) {
    t->n_top = cursor_u8(c);
    if (t->n_top > MAX_TOP) {
        c->failed = true;
        return;
    }
    reply_logprob *top = t->n_top ? arena_alloc(a, (size_t)t->n_top * sizeof *top) : NULL;
    for (int i = 0; i < t->n_top; i++) {
        top[i].id = read_natural(c);
        top[i].logprob = cursor_f32(c);
        if (isnan(top[i].logprob))
            c->failed = true;
    }
    t->top = top;
}

static void read_tokens(cursor *c, arena *a, reply_frame *f) {
    uint8_t logprobs = cursor_u8(c);
    uint32_t n = cursor_u32(c);
    if (logprobs > 1 || n > cursor_left(c) / (logprobs ? 9 : 4)) {
        c->failed = true;
        return;
    }
    f->tokens = n ? arena_alloc(a, n * sizeof *f->tokens) : NULL;
    f->n_tokens = (int)n;
    for (uint32_t i = 0; i < n && !c->failed; i++) {
        reply_token *t = &f->tokens[i];
        t->id = read_natural(c);
        t->logprob = NAN;
        if (logprobs) {
            t->logprob = cursor_f32(c);
            read_top(c, a, t);
        }
    }
}

static void read_frame(cursor *c, arena *a, reply_frame *f) {
    wire_uuid(c, f->id);
    f->choice = cursor_u8(c);
    f->attempt = read_natural(c);
    f->run = cursor_u64(c);
    f->flags = cursor_u16(c);
    uint8_t finish = cursor_u8(c);
    f->from = read_natural(c);
    f->cached = read_natural(c);
    f->queue_ms = read_natural(c);
    f->queue_steps = read_natural(c);
    f->engine_us = read_natural(c);
    const char *text = cursor_counted(c, &f->n_text);
    read_tokens(c, a, f);
    if (c->failed || f->choice >= JOB_CHOICES || f->attempt < 1 ||
        (f->flags & ~(unsigned)FLAGS_ALL) || finish > FINISH_ERROR ||
        f->from > INT32_MAX - f->n_tokens || !is_utf8(text, f->n_text)) {
        c->failed = true;
        return;
    }
    f->finish = (reply_finish)finish;
    f->text = arena_dup(a, text, f->n_text);
}

int reply_decode(const void *p, size_t n, arena *a, reply *r, err *e) {
    cursor c = cursor_over(p, n);
    memset(r, 0, sizeof *r);
    if (cursor_u8(&c) != VERSION)
        return err_set(e, ERR_FORMAT, "version", "a reply of another version");
    r->worker = cursor_u64(&c);
    uint32_t count = cursor_u32(&c);
    if (c.failed || count > cursor_left(&c) / FRAME_LEAST_BYTES)
        return err_set(e, ERR_FORMAT, "frames", "a reply of %zu bytes is cut off", n);
    r->frames = count ? arena_alloc(a, count * sizeof *r->frames) : NULL;
    r->n_frames = (int)count;
    for (uint32_t i = 0; i < count && !c.failed; i++)
        read_frame(&c, a, &r->frames[i]);
    if (!cursor_done(&c))
        return err_set(e, ERR_FORMAT, "frames", "a reply of %zu bytes is malformed", n);
    return 0;
}

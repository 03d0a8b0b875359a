// Opens a model: file or directory, shape, tensor table, tokenizer and templates, in this order, so
// that the first thing wrong is the one reported. Owns all of them. Read-only after open: any
// thread. Reads no weights but the samples of the revision; the engine reads them.
#include "model/model.h"
#include "base/secret.h"
#include "model/hf.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_NAME_BYTES 128u
#define REVISION_BYTES 16u
#define SUM_BYTES 32u
#define EDGE_BYTES 4096u // of a tensor's start and end
#define INNER_BYTES 256u // of each place between them
#define N_INNER 14u
#define SAMPLED_BYTES (2 * EDGE_BYTES + N_INNER * INNER_BYTES)

struct model {
    gguf *file;
    model_shape shape;
    tokenizer *tokens;
    const chat_template *template;
    const fim_template *fim;
    char name[MAX_NAME_BYTES + 1];
    char revision[2 * REVISION_BYTES + 1];
};

// A name that can stand in a log line or a table: UTF-8 without control characters.
static bool is_showable(gguf_string s) {
    if (s.n == 0 || s.n > MAX_NAME_BYTES)
        return false;
    for (size_t i = 0; i < s.n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)s.p + i, (utf8proc_ssize_t)(s.n - i), &c);
        if (n <= 0 || utf8proc_category(c) == UTF8PROC_CATEGORY_CC)
            return false;
        i += (size_t)n;
    }
    return true;
}

static void set_name(model *m, const char *path) {
    gguf_string name;
    if (!gguf_get_string(m->file, "general.name", &name) || !is_showable(name)) {
        const char *slash = strrchr(path, '/'), *stem = slash ? slash + 1 : path;
        const char *dot = strrchr(stem, '.');
        name = (gguf_string){stem, dot && dot > stem ? (size_t)(dot - stem) : strlen(stem)};
        if (!is_showable(name))
            name = (gguf_string){"unnamed", 7};
    }
    memcpy(m->name, name.p, name.n); // m was zeroed: terminated
}

// Both edges and evenly spread places between them, or all of a tensor that is no larger.
static int read_samples(const gguf *g, size_t part, uint64_t bytes, uint8_t *to, err *e) {
    if (bytes <= SAMPLED_BYTES)
        return gguf_read(g, part, 0, to, (size_t)bytes, e);
    if (gguf_read(g, part, 0, to, EDGE_BYTES, e) ||
        gguf_read(g, part, bytes - EDGE_BYTES, to + EDGE_BYTES, EDGE_BYTES, e))
        return -1;
    to += 2 * EDGE_BYTES;
    for (size_t i = 1; i <= N_INNER; i++, to += INNER_BYTES)
        if (gguf_read(g, part, bytes / (N_INNER + 1) * i, to, INNER_BYTES, e))
            return -1;
    return 0;
}

// A chain of sums: the head's, then after each tensor that of the sum so far and its samples.
static int set_revision(model *m, err *e) {
    static const char digits[] = "0123456789abcdef";
    uint8_t chain[SUM_BYTES + SAMPLED_BYTES], sum[SUM_BYTES];
    size_t n;
    const void *head = gguf_head(m->file, &n);
    secret_sha256(head, n, sum);
    for (size_t i = 0; i < gguf_n_stored(m->file); i++) {
        uint64_t bytes = gguf_stored_bytes(m->file, i);
        memcpy(chain, sum, SUM_BYTES);
        if (read_samples(m->file, i, bytes, chain + SUM_BYTES, e))
            return -1;
        n = bytes < SAMPLED_BYTES ? (size_t)bytes : SAMPLED_BYTES;
        secret_sha256(chain, SUM_BYTES + n, sum);
    }
    for (size_t i = 0; i < REVISION_BYTES; i++) {
        m->revision[2 * i] = digits[sum[i] >> 4];
        m->revision[2 * i + 1] = digits[sum[i] & 15];
    }
    return 0;
}

static int open_vocabulary(model *m, err *e) {
    if (tokenizer_open(m->file, &m->tokens, e))
        return -1;
    if (tokenizer_n_vocab(m->tokens) != m->shape.n_vocab)
        return err_set(e, ERR_FORMAT, NULL, "the tokenizer has %d tokens, the model %d",
                       tokenizer_n_vocab(m->tokens), m->shape.n_vocab);
    m->fim = fim_detect(m->tokens);
    return 0;
}

int model_open_parts(const char *path, model **out, err *e) {
    model *m = calloc(1, sizeof *m);
    if (!m)
        fatal("out of memory");
    bool directory = hf_is_directory(path);
    if (directory ? hf_open(path, &m->file, e) : gguf_open(path, &m->file, e)) {
        free(m);
        return -1;
    }
    if (model_read_shape(m->file, &m->shape, e) || model_check_tensors(m->file, &m->shape, e) ||
        open_vocabulary(m, e) || set_revision(m, e)) {
        model_close(m);
        if (directory)
            hf_explain(e);
        return err_wrap(e, "%.200s", path);
    }
    set_name(m, path);
    *out = m;
    return 0;
}

static int choose_template(model *m, const char *name, err *e) {
    if (name && *name) {
        m->template = template_by_name(name);
        if (!m->template)
            return err_set(
                e, ERR_UNSUPPORTED, "template",
                "there is no chat template '%.40s'; set [model NAME] template= to one of %s", name,
                template_names());
        return 0;
    }
    if (!gguf_has(m->file, "tokenizer.chat_template", NULL))
        return 0;
    return template_detect(m->file, &m->template, e);
}

int model_open(const char *path, const char *template_name, model **out, err *e) {
    model *m = NULL;
    if (model_open_parts(path, &m, e))
        return -1;
    if (choose_template(m, template_name, e)) {
        if (gguf_version(m->file) == 0)
            hf_explain(e);
        model_close(m);
        return err_wrap(e, "%.200s", path);
    }
    *out = m;
    return 0;
}

void model_close(model *m) {
    if (!m)
        return;
    tokenizer_close(m->tokens);
    gguf_close(m->file);
    free(m);
}

const gguf *model_gguf(const model *m) { return m->file; }
const model_shape *model_get_shape(const model *m) { return &m->shape; }
const tokenizer *model_tokenizer(const model *m) { return m->tokens; }
const chat_template *model_template(const model *m) { return m->template; }
const fim_template *model_fim(const model *m) { return m->fim; }
const char *model_file_name(const model *m) { return m->name; }
const char *model_revision(const model *m) { return m->revision; }

bool model_is_end(const model *m, int32_t id) {
    return tokenizer_is_end(m->tokens, id) || (m->fim && fim_is_end(m->fim, m->tokens, id));
}

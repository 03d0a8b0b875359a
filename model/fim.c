// Fill-in-the-middle prompts as the model families were trained on them: Qwen2.5-Coder and
// StarCoder2 with a repository level, StarCoder and Code Llama (prefix-suffix-middle) without;
// formats from their papers. Stateless; any thread; memory is the request's arena. Does not choose
// or cut the context: what it is given, it writes.
#include "model/fim.h"
#include "model/template_internal.h"
#include <string.h>

#define MAX_ENDS 8

struct fim_template {
    const char *name;
    const char *prefix, *suffix, *middle;
    const char *repository, *file; // tokens of the repository level, NULL: the family has none
    bool path_after_prefix;        // StarCoder2: the edited file's path stands behind <fim_prefix>
    const char *lead;              // between the prefix token and the prefix, or NULL
    const char *ends[MAX_ENDS];    // tokens that say the middle is over
};

static const fim_template families[] = {
    {.name = "qwen2.5-coder",
     .prefix = "<|fim_prefix|>",
     .suffix = "<|fim_suffix|>",
     .middle = "<|fim_middle|>",
     .repository = "<|repo_name|>",
     .file = "<|file_sep|>",
     .ends = {"<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
              "<|repo_name|>", "<|file_sep|>"}},
    {.name = "starcoder2",
     .prefix = "<fim_prefix>",
     .suffix = "<fim_suffix>",
     .middle = "<fim_middle>",
     .repository = "<repo_name>",
     .file = "<file_sep>",
     .path_after_prefix = true,
     .ends = {"<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>",
              "<repo_name>", "<file_sep>"}},
    {.name = "starcoder",
     .prefix = "<fim_prefix>",
     .suffix = "<fim_suffix>",
     .middle = "<fim_middle>",
     .ends = {"<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>",
              "<filename>"}},
    {.name = "codellama",
     .prefix = "\u2581<PRE>",
     .suffix = "\u2581<SUF>",
     .middle = "\u2581<MID>",
     .lead = " ",
     .ends = {"\u2581<EOT>", "\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"}},
};

static bool has_control(const tokenizer *t, const char *name) {
    return !name || tokenizer_is_control(t, tokenizer_find(t, name));
}

const fim_template *fim_detect(const tokenizer *t) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const fim_template *f = &families[i];
        if (has_control(t, f->prefix) && has_control(t, f->suffix) && has_control(t, f->middle) &&
            has_control(t, f->repository) && has_control(t, f->file))
            return f;
    }
    return NULL;
}

const char *fim_name(const fim_template *f) { return f->name; }

// ---- writing

typedef struct writer {
    arena *a;
    segment_list *out;
} writer;

static void ours(writer w, const char *text) { segment_put(w.a, w.out, text, strlen(text), true); }

static void theirs(writer w, const char *text, size_t n) {
    segment_put(w.a, w.out, text, n, false);
}

static void line(writer w, const char *text) { // NULL: an empty one
    theirs(w, text, text ? strlen(text) : 0);
    ours(w, "\n");
}

// Qwen: <|repo_name|>NAME\n, then <|file_sep|>PATH\nCONTENT\n for each file and <|file_sep|>PATH\n.
// StarCoder2: <repo_name>NAME, then <file_sep>PATH\nCONTENT, and <file_sep>. A name that is not
// known is left out with its token.
static void write_repository(const fim_template *f, const fim_request *r, writer w) {
    bool lines = !f->path_after_prefix;
    if (r->repository) {
        ours(w, f->repository);
        theirs(w, r->repository, strlen(r->repository));
        ours(w, lines ? "\n" : "");
    }
    for (size_t i = 0; i < r->n_files; i++) {
        ours(w, f->file);
        line(w, r->files[i].path);
        theirs(w, r->files[i].content, r->files[i].n_content);
        ours(w, lines ? "\n" : "");
    }
    ours(w, f->file);
    if (lines)
        line(w, r->path);
}

int fim_render(const fim_template *f, const fim_request *r, arena *a, segment_list *out, err *e) {
    writer w = {a, out};
    if (r->n_files && !f->file)
        return err_set(e, ERR_UNSUPPORTED, "context",
                       "this model (%s) takes no other files as context", f->name);
    bool whole_repository = f->file && (r->n_files || r->repository);
    if (whole_repository)
        write_repository(f, r, w);
    ours(w, f->prefix);
    if (f->lead)
        ours(w, f->lead);
    if (whole_repository && f->path_after_prefix && r->path)
        line(w, r->path);
    theirs(w, r->prefix, r->n_prefix);
    ours(w, f->suffix);
    theirs(w, r->suffix, r->n_suffix);
    ours(w, f->middle);
    return 0;
}

bool fim_is_end(const fim_template *f, const tokenizer *t, int32_t id) {
    if (!tokenizer_is_control(t, id))
        return false;
    for (size_t i = 0; i < MAX_ENDS && f->ends[i]; i++)
        if (tokenizer_find(t, f->ends[i]) == id)
            return true;
    return false;
}

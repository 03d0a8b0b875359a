// `tiergate fit MODEL`: will it fit, and how many requests at a time? MODEL is a file, a directory
// or the name of a published shape; the memory is this machine's, --memory, or a GPU's. Reads no
// weights and needs no installation.
#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/ops.h"
#include "model/fit.h"

#define STEP_ROWS 512 // worker.step_tokens
#define USED_PERCENT 90

typedef struct fit_options {
    const char *what, *memory, *gpu, *weights, *kv;
    int64_t context, rows;
    bool json;
} fit_options;

typedef struct candidate {   // a model and a memory
    const char *name, *form; // "Qwen2.5-7B", "q4_k_m" or "as in the file"
    model_shape shape;
    uint64_t weight_bytes;
    kv_type kv;
    char memory_name[96];
    uint64_t memory_bytes, used_bytes; // all of it, and what may be used
} candidate;

// ---- weights

static bool is_vector(const gguf_tensor *t) { return t->n_dims == 1; }

// GPUs keep floats in 16 bits.
static weight_type kept_as(weight_type t, bool gpu) { return gpu && t == WT_F32 ? WT_BF16 : t; }

static uint64_t file_bytes(const gguf *g, bool gpu) {
    uint64_t all = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        all += is_vector(t) ? t->dims[0] * sizeof(float)
                            : weight_packed_bytes(kept_as((weight_type)t->type, gpu),
                                                  (int64_t)t->dims[1], (int64_t)t->dims[0]);
    }
    return all;
}

// A named form: most matrices' type, that of the embedding, and that of what "Q4_K_M" keeps finer
// (the head, and v and down of half of the layers).
static const struct {
    const char *name;
    weight_type most, embedding, finer;
} forms[] = {
    {"bf16", WT_BF16, WT_BF16, WT_BF16},   {"f16", WT_F16, WT_F16, WT_F16},
    {"q8_0", WT_Q8_0, WT_Q8_0, WT_Q8_0},   {"q4_0", WT_Q4_0, WT_Q4_0, WT_Q6_K},
    {"q4_k_m", WT_Q4_K, WT_Q4_K, WT_Q6_K}, {"awq", WT_INT4, WT_F16, WT_F16},
    {"gptq", WT_INT4, WT_F16, WT_F16},
};
enum { N_FORMS = sizeof forms / sizeof *forms };

static uint64_t form_bytes(const model_shape *s, int form) {
    uint64_t all = fit_vector_bytes(s);
    for (int part = 0; part < FIT_PARTS; part++) {
        int64_t n_out, n_in;
        int n;
        fit_matrix(s, (fit_part)part, &n_out, &n_in, &n);
        bool embedding = part == FIT_EMBEDDING || part == FIT_HEAD;
        int finer = part == FIT_HEAD                                                     ? n
                    : (part == FIT_V || part == FIT_DOWN) && forms[form].most == WT_Q4_K ? n / 2
                                                                                         : 0;
        weight_type type = embedding ? forms[form].embedding : forms[form].most;
        all += weight_packed_bytes(type, n_out, n_in) * (uint64_t)(n - finer) +
               weight_packed_bytes(forms[form].finer, n_out, n_in) * (uint64_t)finer;
    }
    return all;
}

static int find_form(const char *name, err *e) {
    for (int i = 0; i < N_FORMS; i++)
        if (!strcmp(forms[i].name, name))
            return i;
    return err_set(e, ERR_INVALID, "weights",
                   "--weights is bf16, f16, q8_0, q4_0, q4_k_m, awq or gptq, not '%.40s'", name);
}

static int read_named(const fit_options *o, candidate *c, err *e) {
    const model_shape *s = fit_shape_find(o->what, &c->name);
    if (!s)
        return err_set(e, ERR_INVALID, "model",
                       "'%.80s' is neither a file, a directory nor the name of a known shape (7b, "
                       "14b, 72b, ...; --help lists them)",
                       o->what);
    int form = find_form(o->weights ? o->weights : "bf16", e);
    if (form < 0)
        return -1;
    c->shape = *s;
    c->form = forms[form].name;
    c->weight_bytes = form_bytes(s, form);
    return 0;
}

static int read_model(const fit_options *o, candidate *c, model **m, err *e) {
    if (access(o->what, F_OK))
        return read_named(o, c, e);
    if (o->weights)
        return err_set(e, ERR_INVALID, "weights",
                       "--weights is for the name of a shape; %.200s has its own", o->what);
    if (model_open_parts(o->what, m, e))
        return -1;
    c->name = model_file_name(*m);
    c->form = "as stored";
    c->shape = *model_get_shape(*m);
    c->weight_bytes = file_bytes(model_gguf(*m), o->gpu != NULL);
    return 0;
}

// ---- memory

// "24GiB", "800MiB", "24GB" ... 0: not one.
static uint64_t parse_size(const char *text) {
    static const struct {
        const char *name;
        uint64_t bytes;
    } units[] = {{"KiB", 1u << 10}, {"MiB", 1u << 20},    {"GiB", 1u << 30},
                 {"MB", 1000000},   {"GB", 1000000000},   {"TiB", (uint64_t)1 << 40},
                 {"B", 1},          {"TB", 1000000000000}};
    char *end;
    errno = 0;
    double n = isdigit((unsigned char)*text) ? strtod(text, &end) : 0;
    for (size_t i = 0; n > 0 && !errno && i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].name) && n * (double)units[i].bytes < 1e18)
            return (uint64_t)(n * (double)units[i].bytes);
    return 0;
}

static int read_gpu(const char *name, candidate *c, err *e) {
    const fit_gpu *g = fit_gpu_find(name);
    buf names = {0};
    for (size_t i = 0; fit_gpu_at(i); i++)
        buf_printf(&names, "%s%s", i ? ", " : "", fit_gpu_at(i)->name);
    int rc = g ? 0
               : err_set(e, ERR_INVALID, "gpu", "--gpu '%.40s' is not known; known are %s", name,
                         names.data);
    buf_release(&names);
    if (rc)
        return -1;
    snprintf(c->memory_name, sizeof c->memory_name, "%s", g->full_name);
    c->memory_bytes = g->memory_bytes;
    c->used_bytes = g->memory_bytes / 100 * USED_PERCENT;
    return 0;
}

static int read_memory(const fit_options *o, candidate *c, err *e) {
    if (o->gpu && o->memory)
        return err_set(e, ERR_INVALID, "memory", "give --memory or --gpu, not both");
    if (o->gpu)
        return read_gpu(o->gpu, c, e);
    if (o->memory) {
        snprintf(c->memory_name, sizeof c->memory_name, "given");
        c->memory_bytes = c->used_bytes = parse_size(o->memory);
        return c->memory_bytes
                   ? 0
                   : err_set(e, ERR_INVALID, "memory",
                             "--memory is a size such as 24GiB, not '%.40s'", o->memory);
    }
    snprintf(c->memory_name, sizeof c->memory_name, "this machine");
    c->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    c->used_bytes = c->memory_bytes / 100 * USED_PERCENT;
    return 0;
}

// ---- telling

static double gib(uint64_t bytes) { return (double)bytes / (double)(1u << 30); }

// The contexts that are told: the one asked for, or powers of two up to the model's own.
static int list_contexts(const fit_options *o, const model_shape *s, int *out) {
    static const int usual[] = {2048, 4096, 8192, 16384, 32768, 65536, 131072};
    int n = 0;
    if (o->context) {
        out[n++] = (int)o->context;
        return n;
    }
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (usual[i] < s->context)
            out[n++] = usual[i];
    out[n++] = s->context;
    return n;
}

static void print_json(const fit_options *o, const candidate *c, const fit *f, const int *contexts,
                       int n) {
    json_t *requests = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(requests, json_pack("{s:i, s:I}", "context", contexts[i], "requests",
                                                  (json_int_t)fit_requests(f, contexts[i])));
    json_t *all = json_pack(
        "{s:s, s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:b, s:o}", "model", c->name,
        "weights", c->form, "parameters", (json_int_t)fit_parameters(&c->shape), "memory",
        o->gpu ? o->gpu : c->memory_name, "memory_bytes", (json_int_t)c->memory_bytes, "used_bytes",
        (json_int_t)c->used_bytes, "weight_bytes", (json_int_t)c->weight_bytes, "activation_bytes",
        (json_int_t)f->activation_bytes, "kv_bytes_per_token", (json_int_t)f->kv_bytes_per_token,
        "kv_bytes", (json_int_t)f->free_bytes, "kv_tokens", (json_int_t)f->kv_tokens, "kv_type",
        kv_type_name(c->kv), "fits", (int)f->fits, "concurrent", requests);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

static void print_table(const fit_options *o, const candidate *c, const fit *f, const int *contexts,
                        int n) {
    printf("%-12s %s, %.2f billion parameters, weights %s\n", "model", c->name,
           (double)fit_parameters(&c->shape) / 1e9, c->form);
    printf("%-12s %.1f GiB (%s), %.1f GiB of them to be used\n", "memory", gib(c->memory_bytes),
           c->memory_name, gib(c->used_bytes));
    printf("%-12s %.2f GiB\n", "weights", gib(c->weight_bytes));
    printf("%-12s %.2f GiB for steps of %lld tokens\n", "activations", gib(f->activation_bytes),
           (long long)o->rows);
    printf("%-12s %s, %llu bytes a token; %.2f GiB are left for %lld tokens\n", "KV cache",
           kv_type_name(c->kv), (unsigned long long)f->kv_bytes_per_token, gib(f->free_bytes),
           (long long)f->kv_tokens);
    printf("\n%12s %20s\n", "CONTEXT", "CONCURRENT REQUESTS");
    for (int i = 0; i < n; i++)
        printf("%12d %20lld\n", contexts[i], (long long)fit_requests(f, contexts[i]));
}

static int tell(const fit_options *o, const candidate *c, err *e) {
    int contexts[8];
    int n = list_contexts(o, &c->shape, contexts);
    fit f = fit_compute(&c->shape, c->weight_bytes,
                        kv_plane_bytes(c->kv, FIT_PAGE_TOKENS, c->shape.head_dim), c->used_bytes,
                        (int)o->rows);
    if (o->json)
        print_json(o, c, &f, contexts, n);
    else
        print_table(o, c, &f, contexts, n);
    if (!f.fits)
        return err_set(
            e, ERR_UNSUPPORTED, "memory",
            "%s does not fit: weights and activations take %.1f GiB of the %.1f GiB that "
            "may be used",
            c->name, gib(c->weight_bytes + f.activation_bytes), gib(c->used_bytes));
    if (o->context && fit_requests(&f, (int)o->context) == 0)
        return err_set(e, ERR_UNSUPPORTED, "context",
                       "not one request of %lld tokens fits: the KV cache has room for %lld",
                       (long long)o->context, (long long)f.kv_tokens);
    return 0;
}

static int check_options(const fit_options *o, candidate *c, err *e) {
    if (!kv_type_find(o->kv, &c->kv))
        return err_set(e, ERR_INVALID, "kv-type", "--kv-type is f16, bf16, f32 or q8, not '%.40s'",
                       o->kv);
    if (o->rows < 1 || o->rows > 65536)
        return err_set(e, ERR_INVALID, "step-tokens", "--step-tokens is 1 to 65536, not %lld",
                       (long long)o->rows);
    if (o->context < 0 || o->context > c->shape.context)
        return err_set(e, ERR_INVALID, "context",
                       "--context is 1 to %d, the context of %s, not %lld", c->shape.context,
                       c->name, (long long)o->context);
    return 0;
}

static void help(const option_row *rows, int n) {
    buf text = {0};
    options_help(rows, n, &text);
    printf("tiergate fit FILE.gguf|DIRECTORY|NAME [options]\n\n%s\nknown shapes: 7b, 14b, 72b",
           text.data);
    for (size_t i = 0; fit_shape_name(i); i++)
        printf(", %s", fit_shape_name(i));
    printf("\nknown GPUs:   ");
    for (size_t i = 0; fit_gpu_at(i); i++)
        printf("%s%s", i ? ", " : "", fit_gpu_at(i)->name);
    puts("");
    buf_release(&text);
}

int command_fit(int argc, char **argv, err *e) {
    fit_options o = {.rows = STEP_ROWS, .kv = "f16"};
    const option_row rows[] = {
        {"memory", OPTION_TEXT, &o.memory, "SIZE",
         "memory to use, for example 24GiB (default: 90% of this machine's)"},
        {"gpu", OPTION_TEXT, &o.gpu, "NAME", "use 90% of this GPU's memory"},
        {"context", OPTION_INT, &o.context, "N", "tokens of a request (default: several)"},
        {"weights", OPTION_TEXT, &o.weights, "FORM",
         "of a known shape: bf16 (default), f16, q8_0, q4_0, q4_k_m, awq, gptq"},
        {"kv-type", OPTION_TEXT, &o.kv, "TYPE", "worker.kv_type: f16 (default), bf16, f32, q8"},
        {"step-tokens", OPTION_INT, &o.rows, "N", "worker.step_tokens (default: 512)"},
        {"json", OPTION_FLAG, &o.json, NULL, "print JSON"},
    };
    enum { N = sizeof rows / sizeof *rows };
    candidate c = {0};
    model *m = NULL;
    int n_words;
    bool wants_help;
    if (options_parse(rows, N, argc, argv, &o.what, 1, &n_words, &wants_help, e))
        return -1;
    if (wants_help) {
        help(rows, N);
        return 0;
    }
    if (n_words == 0)
        return err_set(e, ERR_INVALID, "model",
                       "say which model: a GGUF file, a directory, or a name such as 7b");
    int rc = read_memory(&o, &c, e) || read_model(&o, &c, &m, e) || check_options(&o, &c, e) ||
                     tell(&o, &c, e)
                 ? -1
                 : 0;
    model_close(m);
    return rc;
}

// tokenizer.json (Hugging Face tokenizers), tokenizer_config.json and chat_template.jinja as GGUF
// metadata. The pipeline must be one that model/tokenizer*.c follows exactly: byte-level BPE with
// one of four pre-tokenizers; every field that would change an id is read or refused by name.
// Padding and truncation are left out, since transformers applies neither unasked. Owns nothing.
#include "model/hf_internal.h"
#include "base/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENIZER "tokenizer.json"
#define CONFIG "tokenizer_config.json"
#define MAX_TOKENIZER_BYTES (64u << 20)
#define MAX_TEMPLATE_BYTES (1u << 20)
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 }; // tokenizer.ggml.token_type

#define WORDS(numbers)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers                          \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

// The steps of the pre-tokenizer as a text (see step_text) and what must come with them.
static const struct {
    const char *steps, *pre;
    bool nfc, ignore_merges;
} pipelines[] = {
    {"split:" WORDS("\\p{N}") ";bytes;", "qwen2", true, false},
    {"split:" WORDS("\\p{N}{1,3}") ";bytes;", "llama-bpe", false, true},
    {"digits;words;", "smollm", false, false},
    {"words;", "gpt-2", false, false},
};

typedef struct vocabulary {
    const char **names; // [n]; NULL: no token
    uint8_t *kinds;     // [n]
    int64_t n;
} vocabulary;

// ---- the pipeline

static bool flag(const json_t *o, const char *key, bool otherwise) {
    const json_t *v = json_object_get(o, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

static const char *type_of(const json_t *o) {
    const char *s = json_string_value(json_object_get(o, "type"));
    return s ? s : "";
}

// One step: "split:REGEX;", "bytes;" (the byte-level alphabet alone), "words;" (with GPT-2's
// expression), "digits;", or "?;" for anything else.
static void step_text(const json_t *step, buf *out) {
    const char *type = type_of(step);
    const char *regex =
        json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));
    const char *behavior = json_string_value(json_object_get(step, "behavior"));
    if (!strcmp(type, "Split") && regex && behavior && !strcmp(behavior, "Isolated") &&
        !flag(step, "invert", false))
        buf_printf(out, "split:%s;", regex);
    else if (!strcmp(type, "ByteLevel") && !flag(step, "add_prefix_space", true))
        buf_puts(out, flag(step, "use_regex", true) ? "words;" : "bytes;");
    else if (!strcmp(type, "Digits") && flag(step, "individual_digits", false))
        buf_puts(out, "digits;");
    else
        buf_puts(out, "?;");
}

static void steps_text(const json_t *steps, buf *out) {
    const json_t *list = json_object_get(steps, "pretokenizers");
    if (strcmp(type_of(steps), "Sequence")) {
        step_text(steps, out);
        return;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        steps_text(json_array_get(list, i), out);
}

static int read_normalizer(const json_fields *f, bool *nfc, err *e) {
    const json_t *v = json_field(f, "normalizer");
    const json_t *list = json_object_get(v, "normalizers");
    if (!strcmp(type_of(v), "Sequence") && json_array_size(list) < 2)
        v = json_array_get(list, 0);
    *nfc = v != NULL;
    if (v && strcmp(type_of(v), "NFC"))
        return json_field_unsupported(f, "normalizer", "NFC or none is supported", e);
    return 0;
}

static int read_pipeline(const json_fields *f, hf_head *h, err *e) {
    bool nfc, ignore = flag(json_field(f, "model"), "ignore_merges", false);
    buf steps = {0};
    if (read_normalizer(f, &nfc, e))
        return -1;
    buf_puts(&steps, ""); // an empty sequence is a text too
    steps_text(json_field(f, "pre_tokenizer"), &steps);
    size_t i = 0;
    while (i < sizeof pipelines / sizeof *pipelines && strcmp(pipelines[i].steps, steps.data))
        i++;
    buf_release(&steps);
    if (i == sizeof pipelines / sizeof *pipelines)
        return json_field_unsupported(
            f, "pre_tokenizer", "those of Qwen2, Llama 3, SmolLM2 and GPT-2 are supported", e);
    if (nfc != pipelines[i].nfc)
        return json_field_unsupported(f, "normalizer", "it does not fit the pre_tokenizer", e);
    if (ignore != pipelines[i].ignore_merges)
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       TOKENIZER ": model.ignore_merges is %s; with this pre_tokenizer %s is "
                                 "supported",
                       ignore ? "true" : "false", ignore ? "false" : "true");
    hf_put_text(h, "tokenizer.ggml.model", "gpt2");
    hf_put_text(h, "tokenizer.ggml.pre", pipelines[i].pre);
    if (strcmp(type_of(json_field(f, "decoder")), "ByteLevel"))
        return json_field_unsupported(f, "decoder", "ByteLevel is supported", e);
    return 0;
}

static bool is_empty(const json_t *v) {
    return !v || json_is_null(v) || (json_is_string(v) && !json_string_length(v));
}

static int check_model(const json_fields *model, err *e) {
    if (strcmp(type_of(model->object), "BPE"))
        return json_field_unsupported(model, "type", "BPE is supported", e);
    static const char *const unset[] = {"dropout", "unk_token", "continuing_subword_prefix",
                                        "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
        if (!is_empty(json_object_get(model->object, unset[i])))
            return json_field_unsupported(model, unset[i], "none is supported", e);
    if (flag(model->object, "byte_fallback", false))
        return json_field_unsupported(model, "byte_fallback", "false is supported", e);
    return 0;
}

// ---- tokens

static int put_token(vocabulary *v, const char *name, const json_t *id, uint8_t kind, err *e) {
    json_int_t i = json_integer_value(id);
    if (!json_is_integer(id) || i < 0 || i >= v->n)
        return err_set(e, ERR_FORMAT, NULL,
                       TOKENIZER ": the id of token '%.60s' is none from 0 to %lld (config.json: "
                                 "vocab_size)",
                       name, (long long)v->n - 1);
    if (v->names[i] && strcmp(v->names[i], name))
        return err_set(e, ERR_FORMAT, NULL,
                       TOKENIZER ": tokens '%.60s' and '%.60s' both have id %lld", v->names[i],
                       name, (long long)i);
    v->names[i] = name;
    v->kinds[i] = kind;
    return 0;
}

static int read_vocab(const json_fields *model, vocabulary *v, err *e) {
    const json_t *vocab = json_field(model, "vocab");
    const char *name;
    json_t *id;
    if (!json_is_object(vocab))
        return json_field_missing(model, "vocab", e);
    json_object_foreach((json_t *)(uintptr_t)vocab, name, id) {
        if (put_token(v, name, id, NORMAL, e))
            return -1;
    }
    return 0;
}

static int read_added_token(const json_t *t, const json_t *vocab, vocabulary *v, err *e) {
    static const char *const refused[] = {"lstrip", "rstrip", "single_word", "normalized"};
    const char *name = json_string_value(json_object_get(t, "content"));
    if (!name || !*name)
        return err_set(e, ERR_FORMAT, NULL, TOKENIZER ": added_tokens: one has no content");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (flag(t, refused[i], false))
            return err_set(e, ERR_UNSUPPORTED, NULL,
                           TOKENIZER ": added_tokens: %s of '%.60s' is true; false is supported",
                           refused[i], name);
    const json_t *known = json_object_get(vocab, name), *id = json_object_get(t, "id");
    if (known && json_integer_value(known) != json_integer_value(id))
        return err_set(e, ERR_FORMAT, NULL,
                       TOKENIZER ": added_tokens: '%.60s' has another id in model.vocab", name);
    return put_token(v, name, id, flag(t, "special", false) ? CONTROL : USER_DEFINED, e);
}

static int read_added(const json_fields *f, const json_t *vocab, vocabulary *v, err *e) {
    const json_t *list = json_field(f, "added_tokens");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (read_added_token(json_array_get(list, i), vocab, v, e))
            return -1;
    return 0;
}

static void put_tokens(const vocabulary *v, hf_head *h) {
    hf_put_array(h, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)v->n);
    for (int64_t i = 0; i < v->n; i++)
        hf_put_element(h, v->names[i] ? v->names[i] : "", v->names[i] ? strlen(v->names[i]) : 0);
    hf_put_array(h, "tokenizer.ggml.token_type", GGUF_U8, (uint64_t)v->n);
    for (int64_t i = 0; i < v->n; i++)
        buf_put_u8(&h->keys, v->names[i] ? v->kinds[i] : UNUSED); // no token: padding of the matrix
}

static int bad_merge(size_t i, err *e) {
    return err_set(
        e, ERR_FORMAT, NULL,
        TOKENIZER ": model.merges[%zu] is neither a text of two parts nor an array of two", i);
}

// "a b", or ["a", "b"] since tokenizers 0.20.
static int put_merge(const json_t *m, size_t i, buf *text, hf_head *h, err *e) {
    const char *a = json_string_value(m), *b = NULL;
    if (json_is_array(m) && json_array_size(m) == 2) {
        a = json_string_value(json_array_get(m, 0));
        b = json_string_value(json_array_get(m, 1));
        if (!a || !b || !*a || !*b || strchr(a, ' ') || strchr(b, ' '))
            return bad_merge(i, e);
    } else if (!a) {
        return bad_merge(i, e);
    }
    buf_clear(text);
    buf_printf(text, b ? "%s %s" : "%s", a, b);
    const char *space = strchr(text->data, ' ');
    if (!space || space == text->data || !space[1] || strchr(space + 1, ' '))
        return bad_merge(i, e);
    hf_put_element(h, text->data, text->len);
    return 0;
}

static int put_merges(const json_fields *model, hf_head *h, err *e) {
    const json_t *list = json_field(model, "merges");
    if (!json_is_array(list))
        return json_field_missing(model, "merges", e);
    buf text = {0};
    int rc = 0;
    hf_put_array(h, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(list));
    for (size_t i = 0; i < json_array_size(list) && !rc; i++)
        rc = put_merge(json_array_get(list, i), i, &text, h, e);
    buf_release(&text);
    return rc;
}

static int read_tokens(const json_fields *f, vocabulary *v, hf_head *h, err *e) {
    json_fields model = {TOKENIZER, "model.", json_field(f, "model")};
    if (!json_is_object(model.object))
        return json_field_missing(f, "model", e);
    if (check_model(&model, e) || read_pipeline(f, h, e) || read_vocab(&model, v, e) ||
        read_added(f, json_field(&model, "vocab"), v, e))
        return -1;
    put_tokens(v, h);
    return put_merges(&model, h, e);
}

// ---- begin and end

static int64_t find_name(const vocabulary *v, const char *name) {
    for (int64_t i = 0; i < v->n; i++)
        if (v->names[i] && !strcmp(v->names[i], name))
            return i;
    return -1;
}

// What a template puts before the text ("single": special tokens, then A): at most one token. *bos
// stays NULL when there is none.
static int read_single(const json_fields *f, const json_t *template, const char **bos, err *e) {
    const json_t *single = json_object_get(template, "single");
    size_t n = json_array_size(single);
    for (size_t i = 0; i < n; i++) {
        const json_t *piece = json_array_get(single, i);
        const char *special =
            json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        bool text = json_object_get(piece, "Sequence") != NULL && i == n - 1;
        if (!text && (!special || i > 0))
            return json_field_unsupported(f, "post_processor",
                                          "at most one token before the text is supported", e);
        *bos = special && !text ? special : *bos;
    }
    return 0;
}

static int read_post(const json_fields *f, const json_t *post, const char **bos, err *e) {
    const json_t *list = json_object_get(post, "processors");
    const char *type = type_of(post);
    if (!post || !strcmp(type, "ByteLevel")) // it moves offsets, not tokens
        return 0;
    if (!strcmp(type, "TemplateProcessing"))
        return read_single(f, post, bos, e);
    if (strcmp(type, "Sequence"))
        return json_field_unsupported(f, "post_processor",
                                      "ByteLevel and TemplateProcessing are supported", e);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        if (!strcmp(type_of(one), "Sequence"))
            return json_field_unsupported(f, "post_processor", "one level is supported", e);
        if (read_post(f, one, bos, e))
            return -1;
    }
    return 0;
}

// A special token of tokenizer_config.json: a text, or an object with its content.
static const char *named_token(const json_fields *f, const char *key) {
    const json_t *v = json_field(f, key);
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

static int token_id(const vocabulary *v, const char *file, const char *field, const char *name,
                    int64_t *id, err *e) {
    *id = find_name(v, name);
    if (*id < 0)
        return err_set(e, ERR_FORMAT, NULL, "%s: %s '%.60s' is no token of " TOKENIZER, file, field,
                       name);
    return 0;
}

static int put_bos(const json_fields *f, const json_fields *config, const vocabulary *v, hf_head *h,
                   err *e) {
    const char *added = NULL, *named = named_token(config, "bos_token");
    int64_t id;
    if (read_post(f, json_field(f, "post_processor"), &added, e))
        return -1;
    hf_put_bool(h, "tokenizer.ggml.add_bos_token", added != NULL);
    if (!added && !named)
        return 0;
    if (token_id(v, added ? TOKENIZER : CONFIG, added ? "post_processor" : "bos_token",
                 added ? added : named, &id, e))
        return -1;
    hf_put_u64(h, "tokenizer.ggml.bos_token_id", (uint64_t)id);
    return 0;
}

static int put_ends(const hf_config *c, const json_fields *config, const vocabulary *v, hf_head *h,
                    err *e) {
    const char *name = named_token(config, "eos_token");
    int64_t id = -1;
    if (name && token_id(v, CONFIG, "eos_token", name, &id, e))
        return -1;
    hf_put_array(h, "tiergate.end_token_ids", GGUF_U64, (uint64_t)c->n_ends + (id >= 0));
    for (int i = 0; i < c->n_ends; i++)
        buf_put_u64(&h->keys, (uint64_t)c->ends[i]);
    if (id >= 0)
        buf_put_u64(&h->keys, (uint64_t)id);
    return 0;
}

// ---- the chat template: a file of its own since transformers 4.51, else in tokenizer_config.json

static int put_template_file(const char *directory, hf_head *h, bool *found, err *e) {
    buf path = {0}, text = {0};
    buf_printf(&path, "%s/chat_template.jinja", directory);
    *found = file_exists(path.data);
    int rc = *found ? file_read(path.data, MAX_TEMPLATE_BYTES, &text, e) : 0;
    if (*found && !rc)
        hf_put_text(h, "tokenizer.chat_template", text.len ? text.data : "");
    buf_release(&text);
    buf_release(&path);
    return rc;
}

static int put_template(const char *directory, const json_fields *config, hf_head *h, err *e) {
    bool found;
    if (put_template_file(directory, h, &found, e) || found)
        return found ? 0 : -1;
    const json_t *v = json_field(config, "chat_template");
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const json_t *one = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && !strcmp(name, "default")) {
            v = json_object_get(one, "template");
            break;
        }
    }
    if (v && !json_is_string(v))
        return err_set(e, ERR_FORMAT, NULL,
                       CONFIG ": chat_template is neither a text nor a list with a default");
    if (v)
        hf_put_text(h, "tokenizer.chat_template", json_string_value(v));
    return 0;
}

int hf_read_tokenizer(const char *directory, hf_config *c, hf_head *h, err *e) {
    json_t *o = NULL, *settings = NULL;
    vocabulary v = {calloc((size_t)c->n_vocab, sizeof *v.names), calloc((size_t)c->n_vocab, 1),
                    c->n_vocab};
    if (!v.names || !v.kinds)
        fatal("out of memory: a vocabulary");
    int rc = -1;
    if (json_file_read(directory, TOKENIZER, MAX_TOKENIZER_BYTES, true, JSON_NUMBERS_EXACT, &o,
                       e) ||
        json_file_read(directory, CONFIG, MAX_TOKENIZER_BYTES, false, JSON_NUMBERS_REAL, &settings,
                       e))
        goto done;
    json_fields f = {TOKENIZER, "", o}, config = {CONFIG, "", settings};
    rc = read_tokens(&f, &v, h, e) || put_bos(&f, &config, &v, h, e) ||
                 put_ends(c, &config, &v, h, e) || put_template(directory, &config, h, e)
             ? -1
             : 0;
done:
    json_decref(settings);
    json_decref(o);
    free(v.kinds);
    free(v.names);
    return rc;
}

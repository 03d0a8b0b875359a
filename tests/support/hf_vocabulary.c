// tokenizer.json and config.json of a directory, from a GGUF file's metadata. Owns nothing between
// calls.
#include "tests/support/hf_vocabulary.h"
#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"

#define LETTERS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define WORDS(numbers) "(?i:'s|'t|'re|'ve|'m|'ll|'d)|" LETTERS numbers REST

static void put_text(const char *directory, const char *name, json_t *o) {
    char path[4096];
    err e = {0};
    char *text = json_dumps(o, JSON_COMPACT);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (!text || file_write_atomic(path, 0600, text, strlen(text), &e))
        fatal("%s: %s", path, e.message);
    free(text);
    json_decref(o);
}

// ---- tokenizer.json

static json_t *pre_tokenizer(const char *pre) {
    json_t *words = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                              "trim_offsets", 1, "use_regex", 1);
    if (!strcmp(pre, "gpt-2"))
        return words;
    if (!strcmp(pre, "smollm"))
        return json_pack("{s:s, s:[{s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
                         "Digits", "individual_digits", 1, words);
    json_object_set_new(words, "use_regex", json_false());
    return json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence", "pretokenizers",
                     "type", "Split", "pattern", "Regex",
                     strcmp(pre, "qwen2") ? WORDS("\\p{N}{1,3}") : WORDS("\\p{N}"), "behavior",
                     "Isolated", "invert", 0, words);
}

static void add_token(json_t *added, int64_t id, gguf_string s, bool special) {
    json_array_append_new(added,
                          json_pack("{s:I, s:s%, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id,
                                    "content", s.p, s.n, "single_word", 0, "lstrip", 0, "rstrip", 0,
                                    "normalized", 0, "special", (int)special));
}

static json_t *strings_of(const gguf *g, const char *key) {
    gguf_string s;
    json_t *list = json_array();
    for (uint64_t i = 0; gguf_array_string(g, key, i, &s); i++)
        json_array_append_new(list, json_stringn(s.p, s.n));
    return list;
}

void hf_write_tokenizer(const gguf *g, const char *pre, const char *directory) {
    json_t *vocab = json_object(), *added = json_array();
    gguf_string s;
    for (uint64_t i = 0; gguf_array_string(g, "tokenizer.ggml.tokens", i, &s); i++) {
        uint64_t kind = 1;
        gguf_array_u64(g, "tokenizer.ggml.token_type", i, &kind);
        if (kind == 1)
            json_object_setn_new(vocab, s.p, s.n, json_integer((json_int_t)i));
        else if (kind == 3 || kind == 4)
            add_token(added, (int64_t)i, s, kind == 3);
    }
    bool nfc = !strcmp(pre, "qwen2"), ignore = !strcmp(pre, "llama-bpe");
    json_t *bpe = json_pack("{s:s, s:n, s:n, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                            "ignore_merges", (int)ignore, "vocab", vocab, "merges",
                            strings_of(g, "tokenizer.ggml.merges"));
    put_text(directory, "tokenizer.json",
             json_pack("{s:s, s:o, s:o, s:o, s:{s:s}, s:o}", "version", "1.0", "added_tokens",
                       added, "normalizer", nfc ? json_pack("{s:s}", "type", "NFC") : json_null(),
                       "pre_tokenizer", pre_tokenizer(pre), "decoder", "type", "ByteLevel", "model",
                       bpe));
    json_t *config = json_object();
    if (gguf_get_string(g, "tokenizer.chat_template", &s))
        json_object_set_new(config, "chat_template", json_stringn(s.p, s.n));
    put_text(directory, "tokenizer_config.json", config);
}

// ---- config.json

void hf_write_config(const model_shape *s, const char *directory) {
    static const char *const types[] = {"llama", "qwen2", "qwen3"};
    if (s->scaling != ROPE_NONE)
        fatal("hf_writer: scaled RoPE is not written");
    put_text(directory, "config.json",
             json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:b}",
                       "model_type", types[s->arch], "hidden_size", s->dim, "intermediate_size",
                       s->intermediate, "num_hidden_layers", s->n_layers, "num_attention_heads",
                       s->n_heads, "num_key_value_heads", s->n_kv_heads, "head_dim", s->head_dim,
                       "max_position_embeddings", s->context, "vocab_size", s->n_vocab,
                       "rms_norm_eps", (double)s->rms_eps, "rope_theta", (double)s->rope_base,
                       "tie_word_embeddings", (int)s->tied_head, "attention_bias",
                       (int)s->qkv_bias));
}

FILE *hf_open_weights(const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    FILE *f = fopen(path, "w");
    if (!f)
        fatal("%s: cannot write", path);
    return f;
}

void hf_close_weights(FILE *f) {
    if (fclose(f))
        fatal("hf_writer: cannot write");
}

void hf_write_vocabulary(const gguf *g, const char *pre, const char *directory) {
    static const struct {
        const char *name;
        int rows; // -1: the vocabulary's; 0: a vector
    } tensors[] = {
        {"model.embed_tokens.weight", -1},
        {"model.norm.weight", 0},
        {"model.layers.0.input_layernorm.weight", 0},
        {"model.layers.0.self_attn.q_proj.weight", 8},
        {"model.layers.0.self_attn.k_proj.weight", 8},
        {"model.layers.0.self_attn.v_proj.weight", 8},
        {"model.layers.0.self_attn.o_proj.weight", 8},
        {"model.layers.0.post_attention_layernorm.weight", 0},
        {"model.layers.0.mlp.gate_proj.weight", 8},
        {"model.layers.0.mlp.up_proj.weight", 8},
        {"model.layers.0.mlp.down_proj.weight", 8},
    };
    uint64_t n_vocab = 0, at = 0;
    gguf_array(g, "tokenizer.ggml.tokens", NULL, &n_vocab);
    model_shape s = {.arch = ARCH_LLAMA,
                     .n_layers = 1,
                     .dim = 8,
                     .n_heads = 1,
                     .n_kv_heads = 1,
                     .head_dim = 8,
                     .intermediate = 8,
                     .n_vocab = (int)n_vocab,
                     .context = 64,
                     .rms_eps = 1e-5f,
                     .rope_base = 10000,
                     .tied_head = true};
    hf_write_config(&s, directory);
    hf_write_tokenizer(g, pre, directory);
    FILE *f = hf_open_weights(directory);
    buf header = {0}, length = {0};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        uint64_t rows = tensors[i].rows < 0 ? n_vocab : (uint64_t)tensors[i].rows;
        uint64_t bytes = (rows ? rows : 1) * 8 * 2;
        buf_printf(&header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[", i ? "," : "{",
                   tensors[i].name);
        if (rows)
            buf_printf(&header, "%llu,", (unsigned long long)rows);
        buf_printf(&header, "8],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                   (unsigned long long)(at + bytes));
        at += bytes;
    }
    buf_puts(&header, "}");
    buf_put_u64(&length, header.len);
    if (fwrite(length.data, 8, 1, f) != 1 || fwrite(header.data, header.len, 1, f) != 1 ||
        fflush(f) || ftruncate(fileno(f), (off_t)(8 + header.len + at)))
        fatal("hf_writer: cannot write");
    hf_close_weights(f);
    buf_release(&header);
    buf_release(&length);
}

void hf_remove(const char *directory) {
    char path[4096];
    DIR *d = opendir(directory);
    for (struct dirent *f; d && (f = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", directory, f->d_name);
        if (f->d_name[0] != '.')
            unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(directory);
}

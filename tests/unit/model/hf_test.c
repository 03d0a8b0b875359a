// Hugging Face directories: what is read from which field, and that whatever the engine or
// tokenizer would not follow is refused by the name of file and field. The directories are those
// that transformers saved (tests/fixtures/hf), with one thing changed.
#include "model/model.h"
#include "model/hf.h"
#include "model/safetensors.h"
#include "base/file.h"
#include <dirent.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define FIXTURES "tests/fixtures/hf/"

typedef struct copy { // a directory of links to a fixture's files
    char path[64];
} copy;

static void join(char *out, size_t n, const copy *c, const char *file) {
    snprintf(out, n, "%s/%s", c->path, file);
}

static copy copy_of(const char *fixture) {
    copy c = {"/tmp/tiergate-hf-XXXXXX"};
    char from[512], absolute[4096], to[512];
    assert_non_null(mkdtemp(c.path));
    snprintf(from, sizeof from, FIXTURES "%s", fixture);
    assert_non_null(realpath(from, absolute));
    DIR *d = opendir(absolute);
    for (struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] == '.')
            continue;
        buf target = {0};
        buf_printf(&target, "%s/%s", absolute, f->d_name);
        join(to, sizeof to, &c, f->d_name);
        assert_int_equal(symlink(target.data, to), 0);
        buf_release(&target);
    }
    closedir(d);
    return c;
}

static void drop(const copy *c) {
    char path[512];
    DIR *d = opendir(c->path);
    for (struct dirent *f; (f = readdir(d));) {
        join(path, sizeof path, c, f->d_name);
        if (f->d_name[0] != '.')
            assert_int_equal(unlink(path), 0);
    }
    closedir(d);
    assert_int_equal(rmdir(c->path), 0);
}

// A link is replaced, so that fixtures stay.
static void put_file(const copy *c, const char *file, const char *p, size_t n) {
    char path[512];
    err e = {0};
    join(path, sizeof path, c, file);
    unlink(path);
    if (p && file_write_atomic(path, 0600, p, n, &e))
        fail_msg("%s", e.message);
}

// Sets the value at "a.b.3"; value NULL removes it. An index one past the end appends.
static void set_path(json_t *o, const char *path, const char *value) {
    const char *dot = strchr(path, '.');
    char name[64];
    snprintf(name, sizeof name, "%.*s", dot ? (int)(dot - path) : (int)strlen(path), path);
    size_t index = (size_t)atoi(name);
    if (dot) {
        json_t *inner = json_is_array(o) ? json_array_get(o, index) : json_object_get(o, name);
        assert_non_null(inner);
        set_path(inner, dot + 1, value);
        return;
    }
    json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    assert_true(v || !value);
    if (json_is_array(o) && index == json_array_size(o))
        json_array_append_new(o, v);
    else if (json_is_array(o))
        value ? json_array_set_new(o, index, v) : json_array_remove(o, index);
    else
        value ? json_object_set_new(o, name, v) : json_object_del(o, name);
}

static void edit(const copy *c, const char *file, const char *path, const char *value) {
    char full[512];
    buf text = {0};
    err e = {0};
    join(full, sizeof full, c, file);
    assert_int_equal(file_read(full, 1 << 20, &text, &e), 0);
    json_t *o = json_loadb(text.data, text.len,
                           JSON_DECODE_INT_AS_REAL * !strcmp(file, "tokenizer_config.json"), NULL);
    assert_non_null(o);
    set_path(o, path, value);
    char *made = json_dumps(o, 0);
    put_file(c, file, made, strlen(made));
    free(made);
    json_decref(o);
    buf_release(&text);
}

typedef struct change {
    const char *fixture, *file, *path, *value;
    const char *expect; // a part of the message; NULL: accepted
} change;

#define C "config.json"
#define G "generation_config.json"
#define TJ "tokenizer.json"
#define TC "tokenizer_config.json"
#define I "model.safetensors.index.json"
#define LL "llama-bf16"
#define L3 "llama3-f16-sharded-tied"
#define Q2 "qwen2-f32-tied"
#define QY "qwen2-yarn-bf16-sharded"
#define Q3 "qwen3-bf16"
#define MI "mistral-bf16"
#define LI "llama-linear-f32"
#define AW "awq-qwen2"
#define GP "gptq-v2-qwen2-act-order"

static const change changes[] = {
    // config.json: which model
    {LL, C, "model_type", NULL, "config.json: model_type is missing"},
    {LL, C, "model_type", "\"gemma2\"", "config.json: model_type is \"gemma2\"; llama"},
    {LL, C, "model_type", "7", "config.json: model_type is no text"},
    {LL, C, "architectures", "[\"LlamaForSequenceClassification\"]",
     "config.json: architectures is [\"LlamaForSequenceClassification\"]; it does not fit"},
    {LL, C, "architectures", NULL, NULL},
    // what changes the computation
    {LL, C, "hidden_act", "\"gelu\"", "config.json: hidden_act is \"gelu\""},
    {LL, C, "mlp_bias", "true", "config.json: mlp_bias is true"},
    {LL, C, "partial_rotary_factor", "0.5", "config.json: partial_rotary_factor is 0.5"},
    {LL, C, "partial_rotary_factor", "1.0", NULL},
    {LL, C, "logits_scaling", "8", "config.json: logits_scaling is 8"},
    {LL, C, "final_logit_softcapping", "30.0", "config.json: final_logit_softcapping is 30"},
    {LL, C, "auto_map", "{\"AutoModel\":\"x.Y\"}", "config.json: auto_map is"},
    {Q2, C, "use_sliding_window", "true", "config.json: use_sliding_window is true"},
    {Q2, C, "layer_types", "[\"full_attention\",\"sliding_attention\"]",
     "config.json: layer_types is"},
    {MI, C, "sliding_window", "16", "sliding_window' is 16, less than the context"},
    {MI, C, "sliding_window", "4096", NULL},
    {LL, C, "quantization_config", "{\"quant_method\":\"bitsandbytes\"}",
     "config.json: quantization_config.quant_method is \"bitsandbytes\"; awq and gptq are"},
    // AWQ and GPTQ
    {LL, C, "quantization_config", "{}", "quantization_config.quant_method is missing; awq and"},
    {AW, C, "quantization_config", NULL, "is I32; F32, F16 and BF16 are supported"},
    {AW, C, "quantization_config.bits", "8", "quantization_config.bits is 8; 4 is supported"},
    {AW, C, "quantization_config.bits", NULL, "quantization_config.bits is missing; 4 is supp"},
    {AW, C, "quantization_config.w_bit", "3", "quantization_config.w_bit is 3; 4 is supported"},
    {AW, C, "quantization_config.version", "\"gemv\"", "version is \"gemv\"; gemm is supported"},
    {AW, C, "quantization_config.version", "\"GEMM\"", NULL},
    {AW, C, "quantization_config.zero_point", "false", "zero_point is false; true is supported"},
    {AW, C, "quantization_config.group_size", "0", "quantization_config.group_size is 0; -1 and"},
    {AW, C, "quantization_config.group_size", "48", "quantization_config.group_size is 48; -1 and"},
    {AW, C, "quantization_config.group_size", "64", "96 inputs in groups of 64"},
    {AW, C, "quantization_config.group_size", "-1", ".qzeros' is [3, 8]; expected is [1, 8]"},
    {AW, C, "quantization_config.group_size", "128", "inputs in groups of 128"},
    {AW, C, "quantization_config.quant_method", "\"gptq\"", "expected is ["},
    {GP, C, "quantization_config.quant_method", "\"awq\"", "inputs in groups of 32"},
    {GP, C, "quantization_config.checkpoint_format", "\"marlin\"",
     "quantization_config.checkpoint_format is \"marlin\"; gptq and gptq_v2"},
    {GP, C, "quantization_config.checkpoint_format", "\"gptq\"", NULL},
    {GP, C, "quantization_config.is_marlin_format", "true", "is_marlin_format is true"},
    {GP, C, "quantization_config.pack_dtype", "\"int16\"", "pack_dtype is \"int16\"; int32 is"},
    {GP, C, "quantization_config.dynamic", "{\"+:.*\":{\"bits\":8}}", "dynamic is {"},
    {GP, C, "quantization_config.dynamic", "{}", NULL},
    {LL, C, "rope_interleaved", "true", "config.json: rope_interleaved is true"},
    // sizes
    {LL, C, "num_hidden_layers", NULL, "config.json: num_hidden_layers is missing"},
    {LL, C, "num_hidden_layers", "0", "config.json: num_hidden_layers is 0; 1 to"},
    {LL, C, "num_hidden_layers", "-1", "config.json: num_hidden_layers is -1; 1 to"},
    {LL, C, "num_hidden_layers", "\"2\"", "config.json: num_hidden_layers is no whole number"},
    {LL, C, "num_hidden_layers", "2.0", "config.json: num_hidden_layers is no whole number"},
    {LL, C, "num_hidden_layers", "3", "tensor 'model.layers.2.input_layernorm.weight' is missing"},
    {LL, C, "num_hidden_layers", "1", "tensor 'model.layers.1."},
    {LL, C, "num_hidden_layers", "100000", "key 'num_hidden_layers' is 100000"},
    {LL, C, "hidden_size", "48", "[32, 320] in 2 dimension(s); expected is [48, 320]"},
    {LL, C, "hidden_size", "64", "tensor 'model.embed_tokens.weight' is [32, 320]"},
    {LL, C, "intermediate_size", "32", "tensor 'model.layers.0.mlp.gate_proj.weight' is [32, 64]"},
    {LL, C, "num_attention_heads", "3", "tensor 'model.layers.0.self_attn.q_proj.weight' is"},
    {LL, C, "num_key_value_heads", "3", "2 query heads cannot share 3 KV heads"},
    {LL, C, "num_key_value_heads", "2", "tensor 'model.layers.0.self_attn.k_proj.weight' is"},
    {LL, C, "head_dim", "0", "config.json: head_dim is 0"},
    {LL, C, "head_dim", "12", "heads of 12 values are not supported"},
    {LL, C, "vocab_size", NULL, "config.json: vocab_size is missing"},
    {LL, C, "vocab_size", "319", "tensor 'model.embed_tokens.weight' is [32, 320]"},
    {LL, C, "vocab_size", "264", "the id of token"},
    {LL, C, "max_position_embeddings", NULL, "config.json: max_position_embeddings is missing"},
    {LL, C, "max_position_embeddings", "0", "config.json: max_position_embeddings is 0"},
    {LL, C, "rms_norm_eps", "-1", "config.json: rms_norm_eps is -1"},
    {LL, C, "rms_norm_eps", NULL, NULL},
    {LL, C, "tie_word_embeddings", "1", "config.json: tie_word_embeddings is no bool"},
    {L3, C, "tie_word_embeddings", "false", "'lm_head.weight' is missing"},
    {LL, C, "tie_word_embeddings", "true", NULL}, // the copy is left out
    {Q3, C, "model_type", "\"qwen2\"", "architectures is [\"Qwen3ForCausalLM\"]; it does not fit"},
    // RoPE
    {LL, C, "rope_parameters.rope_theta", "0", "config.json: rope_parameters.rope_theta is 0"},
    {LL, C, "rope_parameters", "\"x\"", "config.json: rope_parameters is \"x\""},
    {LL, C, "rope_parameters.rope_type", "\"dynamic\"",
     "config.json: rope_parameters.rope_type is \"dynamic\"; default, linear"},
    {LI, C, "rope_parameters.factor", NULL, "config.json: rope_parameters.factor is missing"},
    {LI, C, "rope_parameters.factor", "0.5", "config.json: rope_parameters.factor is 0.5"},
    {QY, C, "rope_parameters.factor", NULL, "config.json: rope_parameters.factor is missing"},
    {QY, C, "rope_parameters.beta_fast", "16", "rope_scaling.beta_fast' is 16"},
    {QY, C, "rope_parameters.truncate", "false", "config.json: rope_parameters.truncate is false"},
    {QY, C, "rope_parameters.mscale", "0.5", "config.json: rope_parameters.mscale is 0.5"},
    {QY, C, "rope_parameters.attention_factor", "1.5", NULL},
    {L3, C, "rope_parameters.factor", NULL, "config.json: rope_parameters.factor is missing"},
    {L3, C, "rope_parameters.low_freq_factor", NULL,
     "config.json: rope_parameters.low_freq_factor is missing"},
    {L3, C, "rope_parameters.high_freq_factor", "0.5",
     "config.json: rope_parameters.high_freq_factor is 0.5; it must be above"},
    // ends
    {LL, G, "eos_token_id", "320", "generation_config.json: eos_token_id is 320; no token"},
    {LL, G, "eos_token_id", "[-1]", "generation_config.json: eos_token_id is [-1]"},
    {LL, G, "eos_token_id", "\"x\"", "generation_config.json: eos_token_id is \"x\""},
    {LL, C, "eos_token_id", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "these are too many"},
    {LL, TC, "eos_token", "\"</s>\"", "tokenizer_config.json: eos_token '</s>' is no token"},
    // tokenizer.json
    {Q2, TJ, "model", NULL, "tokenizer.json: model is missing"},
    {Q2, TJ, "model.type", "\"Unigram\"", "tokenizer.json: model.type is \"Unigram\""},
    {Q2, TJ, "model.dropout", "0.1", "tokenizer.json: model.dropout is 0.1"},
    {Q2, TJ, "model.unk_token", "\"a\"", "tokenizer.json: model.unk_token is \"a\""},
    {Q2, TJ, "model.end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix is"},
    {Q2, TJ, "model.continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix is"},
    {Q2, TJ, "model.continuing_subword_prefix", "\"\"", NULL},
    {Q2, TJ, "model.byte_fallback", "true", "tokenizer.json: model.byte_fallback is true"},
    {Q2, TJ, "model.ignore_merges", "true", "tokenizer.json: model.ignore_merges is true"},
    {L3, TJ, "model.ignore_merges", "false", "tokenizer.json: model.ignore_merges is false"},
    {Q2, TJ, "model.vocab", NULL, "tokenizer.json: model.vocab is missing"},
    {Q2, TJ, "model.vocab.a", "-1", "the id of token 'a'"},
    {Q2, TJ, "model.vocab.a", "\"0\"", "the id of token 'a'"},
    {Q2, TJ, "model.vocab.a", "66", "both have id 66"},
    {Q2, TJ, "model.vocab.a", NULL, "not a byte-level vocabulary"},
    {Q2, TJ, "model.merges", NULL, "tokenizer.json: model.merges is missing"},
    {Q2, TJ, "model.merges.0", "\"a b\"", NULL}, // as text, before tokenizers 0.20
    {Q2, TJ, "model.merges.0", "\"ab\"", "model.merges[0] is neither"},
    {Q2, TJ, "model.merges.0", "\"a b c\"", "model.merges[0] is neither"},
    {Q2, TJ, "model.merges.1", "[\"a\"]", "model.merges[1] is neither"},
    {Q2, TJ, "model.merges.1", "[\"a\",1]", "model.merges[1] is neither"},
    {Q2, TJ, "model.merges.1", "[\"a \",\"b\"]", "model.merges[1] is neither"},
    {Q2, TJ, "model.merges.1", "[\"q\",\"q\"]", "tokenizer.json: model.merges: merge 1 names no"},
    {Q2, TJ, "normalizer", "{\"type\":\"NFKC\"}", "tokenizer.json: normalizer is"},
    {Q2, TJ, "normalizer", NULL, "tokenizer.json: normalizer is missing; it does not fit"},
    {Q2, TJ, "normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}", NULL},
    {LL, TJ, "normalizer", "{\"type\":\"NFC\"}", "it does not fit the pre_tokenizer"},
    {Q2, TJ, "pre_tokenizer", "null", "tokenizer.json: pre_tokenizer is null"},
    {Q2, TJ, "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}", "pre_tokenizer is"},
    {Q2, TJ, "pre_tokenizer.pretokenizers.0.pattern.Regex", "\".\"", "tokenizer.json: pre_token"},
    {Q2, TJ, "pre_tokenizer.pretokenizers.0.behavior", "\"Removed\"", "tokenizer.json: pre_token"},
    {Q2, TJ, "pre_tokenizer.pretokenizers.0.invert", "true", "tokenizer.json: pre_token"},
    {Q2, TJ, "pre_tokenizer.pretokenizers.1.add_prefix_space", "true", "pre_token"},
    {Q2, TJ, "pre_tokenizer.pretokenizers.1.use_regex", "true", "tokenizer.json: pre_token"},
    {LL, TJ, "pre_tokenizer.pretokenizers.0.individual_digits", "false", "pre_tokenizer is"},
    {Q2, TJ, "decoder", "null", "tokenizer.json: decoder is null"},
    {Q2, TJ, "decoder.type", "\"WordPiece\"", "tokenizer.json: decoder is"},
    {L3, TJ, "post_processor.processors.1.single.0.SpecialToken.id", "\"<x>\"",
     "tokenizer.json: post_processor '<x>' is no token"},
    {L3, TJ, "post_processor.processors.1.single.2",
     "{\"SpecialToken\":{\"id\":\"<|im_end|>\",\"type_id\":0}}", "at most one token before"},
    {Q2, TJ, "post_processor", "{\"type\":\"BertProcessing\"}",
     "tokenizer.json: post_processor is"},
    {Q2, TJ, "post_processor", "null", NULL},
    {Q2, TJ, "added_tokens.0.lstrip", "true", "lstrip of '<|begin_of_text|>' is true"},
    {Q2, TJ, "added_tokens.0.rstrip", "true", "rstrip of '<|begin_of_text|>' is true"},
    {Q2, TJ, "added_tokens.0.single_word", "true", "single_word of '<|begin_of_text|>' is"},
    {Q2, TJ, "added_tokens.0.normalized", "true", "normalized of '<|begin_of_text|>' is true"},
    {Q2, TJ, "added_tokens.0.content", "\"\"", "added_tokens: one has no content"},
    {Q2, TJ, "added_tokens.0.content", "\"a\"", "added_tokens: 'a' has another id"},
    {Q2, TJ, "added_tokens.0.id", "320", "the id of token '<|begin_of_text|>' is none"},
    {Q2, TJ, "added_tokens.0.id", "0", "both have id 0"},
    // tokenizer_config.json
    {LL, TC, "chat_template", "7.5", NULL}, // chat_template.jinja counts
    // the index
    {QY, I, "weight_map", NULL, "weight_map is missing"},
    {QY, I, "weight_map", "{}", "weight_map is missing"},
    {QY, I, "weight_map.lm_head~weight", "7", "names no file"},
    {QY, I, "weight_map.x", "\"../x\"", "names no file of this directory"},
    {QY, I, "weight_map.x", "\"none.safetensors\"", "none.safetensors: cannot open"},
    {QY, I, "weight_map.x", "\"model-00001-of-00003.safetensors\"", "but the files have"},
};

static void check_change(const change *k, size_t *n_wrong) {
    copy c = copy_of(k->fixture);
    model *m = NULL;
    err e = {0};
    edit(&c, k->file, k->path, k->value);
    int rc = model_open(c.path, NULL, &m, &e);
    bool fine = k->expect ? rc && strstr(e.message, k->expect) : !rc;
    if (rc && (strncmp(e.message, c.path, strlen(c.path)) ||
               (e.code != ERR_FORMAT && e.code != ERR_UNSUPPORTED && e.code != ERR_IO)))
        fine = false;
    for (const char *p = e.message; *p; p++)
        fine &= (unsigned char)*p >= ' ';
    if (!fine) {
        print_error("%s %s %s = %s: \"%s\", expected \"%s\"\n", k->fixture, k->file, k->path,
                    k->value, e.message, k->expect ? k->expect : "success");
        ++*n_wrong;
    }
    model_close(m);
    drop(&c);
}

static void each_field_that_is_not_followed_is_refused_by_its_name(void **state) {
    (void)state;
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        check_change(&changes[i], &n_wrong);
    assert_int_equal(n_wrong, 0);
}

static void each_file_that_is_not_there_is_named(void **state) {
    (void)state;
    static const char *const files[][3] = {
        {LL, "config.json", "config.json: No such file"},
        {LL, "tokenizer.json", "tokenizer.json: No such file"},
        {LL, "model.safetensors", "neither model.safetensors nor model.safetensors.index.json"},
        {QY, "model-00002-of-00003.safetensors", "model-00002-of-00003.safetensors: cannot open"},
        {LL, "tokenizer_config.json", NULL},
        {LL, "generation_config.json", NULL},
        {LL, "chat_template.jinja", NULL},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        copy c = copy_of(files[i][0]);
        model *m = NULL;
        err e = {0};
        put_file(&c, files[i][1], NULL, 0);
        int rc = model_open(c.path, NULL, &m, &e);
        if (!rc != !files[i][2] || (rc && !strstr(e.message, files[i][2])))
            fail_msg("without %s: %s", files[i][1], e.message);
        model_close(m);
        drop(&c);
    }
}

static void files_that_are_no_json_are_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"", "[]", "{", "{}x", "{\"a\":1,\"a\":2}", "\xff\xfe{}"};
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", I};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            copy c = copy_of(QY);
            model *m = NULL;
            err e = {0};
            put_file(&c, files[i], texts[k], strlen(texts[k]));
            if (!model_open(c.path, NULL, &m, &e) || !strstr(e.message, files[i]))
                fail_msg("%s \"%s\": %s", files[i], texts[k], e.message);
            drop(&c);
        }
}

static model *open_fixture(const char *name) {
    char path[128];
    err e = {0};
    model *m = NULL;
    snprintf(path, sizeof path, FIXTURES "%s", name);
    if (model_open(path, NULL, &m, &e))
        fail_msg("%s", e.message);
    return m;
}

static void a_directory_says_what_it_holds(void **state) {
    (void)state;
    model *m = open_fixture(QY);
    const model_shape *s = model_get_shape(m);
    assert_string_equal(model_file_name(m), QY);
    assert_int_equal(s->arch, ARCH_QWEN2);
    assert_int_equal(s->n_layers, 2);
    assert_int_equal(s->dim, 32);
    assert_int_equal(s->n_heads, 2);
    assert_int_equal(s->n_kv_heads, 1);
    assert_int_equal(s->head_dim, 16);
    assert_int_equal(s->intermediate, 64);
    assert_int_equal(s->n_vocab, 320);
    assert_int_equal(s->context, 128);
    assert_int_equal(s->rope_original_context, 32);
    assert_int_equal(s->scaling, ROPE_YARN);
    assert_false(s->tied_head);
    assert_true(s->qkv_bias);
    assert_false(s->rope_pairs);
    assert_string_equal(template_name(model_template(m)), "chatml");
    const tokenizer *t = model_tokenizer(m);
    assert_true(tokenizer_is_control(t, tokenizer_find(t, "<|im_end|>")));
    assert_false(tokenizer_is_control(t, tokenizer_find(t, "<tool_call>")));
    assert_true(model_is_end(m, tokenizer_find(t, "<|im_end|>")));
    assert_false(tokenizer_adds_bos(t));
    model_close(m);
    m = open_fixture(L3);
    t = model_tokenizer(m);
    assert_true(tokenizer_adds_bos(t));
    assert_int_equal(tokenizer_bos(t), tokenizer_find(t, "<|begin_of_text|>"));
    model_close(m);
}

// generation_config.json's ends count beside the names that are always ends.
static void tokens_of_the_generation_config_end_an_answer(void **state) {
    (void)state;
    copy c = copy_of(LL);
    model *m = NULL;
    err e = {0};
    edit(&c, G, "eos_token_id", "[7,9]");
    assert_int_equal(model_open(c.path, NULL, &m, &e), 0);
    assert_true(model_is_end(m, 7) && model_is_end(m, 9));
    assert_false(model_is_end(m, 8));
    model_close(m);
    drop(&c);
}

// Sets element 0 of a g_idx to that of a neighbour with another group, or to no group at all.
static void change_group(const copy *c, bool to_neighbour) {
    char path[512];
    buf weights = {0};
    err e = {0};
    safetensors *f = NULL;
    join(path, sizeof path, c, "model.safetensors");
    assert_int_equal(file_read(path, 1 << 20, &weights, &e), 0);
    assert_int_equal(safetensors_open_memory(weights.data, weights.len, &f, &e), 0);
    const safetensor *t = safetensors_find(f, "model.layers.1.mlp.down_proj.g_idx");
    char *group = weights.data + t->offset;
    for (size_t i = 0; to_neighbour && i < t->bytes; i += 4)
        if (group[i] != group[0]) {
            group[0] = group[i];
            break;
        }
    if (!to_neighbour)
        group[0] = 99;
    safetensors_close(f);
    put_file(c, "model.safetensors", weights.data, weights.len);
    buf_release(&weights);
}

static void groups_of_act_order_are_whole_and_there(void **state) {
    (void)state;
    static const char *const expect[] = {"element 0 is no group of 3", "no multiple of 32"};
    for (int i = 0; i < 2; i++) {
        copy c = copy_of(GP);
        model *m = NULL;
        err e = {0};
        change_group(&c, i == 1);
        assert_int_equal(model_open(c.path, NULL, &m, &e), -1);
        if (!strstr(e.message, expect[i]))
            fail_msg("%s", e.message);
        assert_non_null(strstr(e.message, "model.layers.1.mlp.down_proj.g_idx"));
        drop(&c);
    }
}

static void a_chat_template_of_its_own_wants_a_setting(void **state) {
    (void)state;
    copy c = copy_of(LL);
    model *m = NULL;
    err e = {0};
    put_file(&c, "chat_template.jinja", "{{ x }}", 7);
    assert_int_equal(model_open(c.path, NULL, &m, &e), -1);
    assert_non_null(
        strstr(e.message, ": chat_template is none that is built in; set [model NAME]"));
    assert_int_equal(model_open(c.path, "qwen2.5", &m, &e), 0);
    model_close(m);
    drop(&c);
}

static void two_directories_with_other_weights_have_other_revisions(void **state) {
    (void)state;
    copy c = copy_of(LL);
    model *a = open_fixture(LL), *b = NULL;
    buf weights = {0};
    err e = {0};
    assert_int_equal(file_read(FIXTURES LL "/model.safetensors", 1 << 20, &weights, &e), 0);
    weights.data[weights.len - 1] ^= 1;
    put_file(&c, "model.safetensors", weights.data, weights.len);
    assert_int_equal(model_open(c.path, NULL, &b, &e), 0);
    assert_string_not_equal(model_revision(a), model_revision(b));
    model_close(a);
    model_close(b);
    buf_release(&weights);
    drop(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_field_that_is_not_followed_is_refused_by_its_name),
        cmocka_unit_test(each_file_that_is_not_there_is_named),
        cmocka_unit_test(files_that_are_no_json_are_refused),
        cmocka_unit_test(a_directory_says_what_it_holds),
        cmocka_unit_test(tokens_of_the_generation_config_end_an_answer),
        cmocka_unit_test(groups_of_act_order_are_whole_and_there),
        cmocka_unit_test(a_chat_template_of_its_own_wants_a_setting),
        cmocka_unit_test(two_directories_with_other_weights_have_other_revisions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// From PEFT's names, order and scale to GGUF's. Owns nothing.
#include "model/adapter.h"
#include "base/file.h"
#include "model/json_file.h"
#include "model/safetensors.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_BYTES = 1 << 30, MOST_CONFIG = 1 << 20, ALIGNMENT = 32 };

typedef struct peft {
    const model_shape *s;
    json_fields config;
    safetensors *file;
    double alpha; // such that alpha / rank scales every tensor
} peft;

typedef struct tensor { // one to be written
    char name[80];
    uint32_t type; // as GGUF numbers them
    const safetensor *from;
} tensor;

// ---- what adapter_config.json says

// Fields that would change what is computed, and their harmless value (JSON); absent and null are
// harmless too.
static int check_features(const peft *p, err *e) {
    static const struct {
        const char *key, *harmless, *why;
    } fields[] = {
        {"bias", "\"none\"", "biases are not adapted"},
        {"lora_bias", "false", "biases are not adapted"},
        {"fan_in_fan_out", "false", "it is of other models"},
        {"modules_to_save", "[]", "whole modules cannot be replaced"},
        {"trainable_token_indices", "[]", "tokens cannot be adapted"},
        {"layer_replication", "[]", "the base model's layers are served as they are"},
        {"alpha_pattern", "{}", "one lora_alpha for all tensors is supported"},
        {"use_dora", "false", "plain LoRA is supported"},
        {"use_qalora", "false", "plain LoRA is supported"},
        {"use_bdlora", "false", "plain LoRA is supported"},
        {"kasa_config", "{}", "plain LoRA is supported"},
        {"arrow_config", "{}", "plain LoRA is supported"},
        {"alora_invocation_tokens", "[]", "plain LoRA is supported"},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && rc == 0; i++) {
        json_t *harmless = json_loads(fields[i].harmless, JSON_DECODE_ANY, NULL);
        rc = json_field_must_be(&p->config, fields[i].key, harmless, fields[i].why, e);
        json_decref(harmless);
    }
    return rc;
}

// Initialisations that also changed the base model: with the plain base the answer would be wrong.
static int check_base(const peft *p, err *e) {
    static const char *const changed[] = {"pissa", "olora", "loftq", "corda"};
    const json_t *init = json_field(&p->config, "init_lora_weights");
    const char *text = json_string_value(init);
    for (size_t i = 0; text && i < sizeof changed / sizeof *changed; i++)
        if (!strncmp(text, changed[i], strlen(changed[i])))
            return json_field_unsupported(
                &p->config, "init_lora_weights",
                "it belongs to a changed base model; convert it to a plain LoRA", e);
    return 0;
}

static int read_scale(peft *p, err *e) {
    int64_t rank = 0;
    bool rs = false;
    double alpha = 0;
    const char *kind = NULL;
    if (json_field_text(&p->config, "peft_type", &kind, e) ||
        json_field_int(&p->config, "r", 1, 65536, &rank, e) ||
        json_field_number(&p->config, "lora_alpha", -1e9, 1e9, &alpha, e) ||
        json_field_bool(&p->config, "use_rslora", &rs, e))
        return -1;
    if (!kind || !rank || !json_field(&p->config, "lora_alpha"))
        return json_field_missing(&p->config, !kind ? "peft_type" : !rank ? "r" : "lora_alpha", e);
    if (strcmp(kind, "LORA"))
        return json_field_unsupported(&p->config, "peft_type", "LORA is supported", e);
    const json_t *ranks = json_field(&p->config, "rank_pattern");
    if (rs && json_object_size(ranks) > 0)
        return json_field_unsupported(&p->config, "rank_pattern",
                                      "with use_rslora one rank is supported", e);
    p->alpha = rs ? alpha * sqrt((double)rank) : alpha; // alpha / sqrt(rank) = this / rank
    return 0;
}

// ---- tensors

static int map_tensor(const safetensor *t, tensor *out, err *e) {
    static const char *const names[][2] = {
        {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"}, {"self_attn.o_proj", "attn_output"},
        {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"}};
    int layer, end = 0;
    out->from = t;
    if (safetensor_float_type(t, &out->type, e))
        return -1;
    if (t->n_dims == 2 &&
        sscanf(t->name, "base_model.model.model.layers.%4d.%n", &layer, &end) == 1 && end &&
        layer >= 0)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            const char *rest = t->name + end;
            size_t n = strlen(names[i][0]);
            if (strncmp(rest, names[i][0], n))
                continue;
            bool is_a = !strcmp(rest + n, ".lora_A.weight");
            if (!is_a && strcmp(rest + n, ".lora_B.weight"))
                continue;
            snprintf(out->name, sizeof out->name, "blk.%d.%s.weight.lora_%c", layer, names[i][1],
                     is_a ? 'a' : 'b');
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED, NULL,
                   "tensor '%.120s': only the projections of a layer can be adapted", t->name);
}

// GGUF wants the rows of Llama's q and k heads as pairs (2i, 2i + 1); trained they are (i, i +
// dim/2).
static bool is_paired(const peft *p, const tensor *t) {
    return p->s->arch == ARCH_LLAMA &&
           (strstr(t->name, "attn_q.weight.lora_b") || strstr(t->name, "attn_k.weight.lora_b"));
}

static int put_paired(const peft *p, const tensor *t, buf *out, err *e) {
    uint64_t dim = (uint64_t)p->s->head_dim, rows = t->from->dims[0];
    size_t row = rows ? (size_t)(t->from->bytes / rows) : 0;
    if (rows % dim)
        return err_set(e, ERR_FORMAT, NULL, "tensor '%.120s': %llu rows are no heads of %d",
                       t->from->name, (unsigned long long)rows, p->s->head_dim);
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t at = r % dim, from = r - at + at % 2 * (dim / 2) + at / 2;
        buf_put(out, (const char *)t->from->data + from * row, row);
    }
    return 0;
}

// ---- the GGUF file

static void put_string(buf *b, const char *text) {
    uint64_t n = strlen(text);
    buf_put(b, &n, sizeof n);
    buf_put(b, text, n);
}

static void put_text_key(buf *b, const char *key, const char *value) {
    uint32_t type = GGUF_STRING;
    put_string(b, key);
    buf_put(b, &type, sizeof type);
    put_string(b, value);
}

static void pad(buf *b, size_t from) {
    static const char zeros[ALIGNMENT];
    size_t over = (b->len - from) % ALIGNMENT;
    if (over)
        buf_put(b, zeros, ALIGNMENT - over);
}

static void put_head(const peft *p, const tensor *tensors, uint64_t n, buf *out) {
    static const char *const archs[] = {
        [ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};
    uint32_t version = 3, f32 = GGUF_F32;
    uint64_t n_keys = 4, offset = 0;
    float alpha = (float)p->alpha;
    buf_put(out, "GGUF", 4);
    buf_put(out, &version, sizeof version);
    buf_put(out, &n, sizeof n);
    buf_put(out, &n_keys, sizeof n_keys);
    put_text_key(out, "general.type", "adapter");
    put_text_key(out, "general.architecture", archs[p->s->arch]);
    put_text_key(out, "adapter.type", "lora");
    put_string(out, "adapter.lora.alpha");
    buf_put(out, &f32, sizeof f32);
    buf_put(out, &alpha, sizeof alpha);
    for (uint64_t i = 0; i < n; i++) {
        const safetensor *t = tensors[i].from;
        uint32_t n_dims = 2;
        put_string(out, tensors[i].name);
        buf_put(out, &n_dims, sizeof n_dims);
        buf_put(out, &t->dims[1], sizeof t->dims[1]); // the contiguous one first
        buf_put(out, &t->dims[0], sizeof t->dims[0]);
        buf_put(out, &tensors[i].type, sizeof tensors[i].type);
        buf_put(out, &offset, sizeof offset);
        offset += (t->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
}

static int put_file(const peft *p, const tensor *tensors, size_t n, buf *out, err *e) {
    size_t begin = out->len;
    put_head(p, tensors, n, out);
    pad(out, begin);
    for (size_t i = 0; i < n; i++) {
        if (!is_paired(p, &tensors[i]))
            buf_put(out, tensors[i].from->data, tensors[i].from->bytes);
        else if (put_paired(p, &tensors[i], out, e))
            return -1;
        pad(out, begin);
    }
    return 0;
}

static int convert(const peft *p, buf *out, err *e) {
    size_t n = safetensors_count(p->file);
    tensor *tensors = calloc(n ? n : 1, sizeof *tensors);
    if (!tensors)
        fatal("out of memory");
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = map_tensor(safetensors_at(p->file, i), &tensors[i], e);
    if (rc == 0)
        rc = put_file(p, tensors, n, out, e);
    if (rc == 0)
        rc = safetensors_unchanged(p->file, e);
    free(tensors);
    return rc;
}

static int read_peft(const char *dir, const model_shape *s, buf *out, err *e) {
    peft p = {.s = s, .config = {.file = "adapter_config.json", .path = ""}};
    json_t *config = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    if (json_file_read(dir, p.config.file, MOST_CONFIG, true, JSON_NUMBERS_EXACT, &config, e))
        return -1;
    p.config.object = config;
    int rc = read_scale(&p, e) || check_features(&p, e) || check_base(&p, e) ||
                     safetensors_open(path, &p.file, e)
                 ? -1
                 : 0;
    if (rc == 0 && safetensors_file_bytes(p.file) > MOST_BYTES)
        rc = err_set(e, ERR_UNSUPPORTED, NULL, "%s is larger than 1 GiB", path);
    if (rc == 0)
        rc = convert(&p, out, e);
    safetensors_close(p.file);
    json_decref(config);
    return rc;
}

int adapter_read(const char *path, const model_shape *s, buf *out, err *e) {
    struct stat st;
    if (stat(path, &st))
        return err_set(e, ERR_IO, NULL, "%s cannot be read", path);
    return S_ISDIR(st.st_mode) ? read_peft(path, s, out, e) : file_read(path, MOST_BYTES, out, e);
}

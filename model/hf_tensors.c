// Names: which tensor of a directory is which of GGUF's, packed ones with what belongs to them.
// Owns nothing beyond the directory's arena. Looks at names and types only; shapes are checked by
// model_check_tensors.
#include "model/hf_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYER "model.layers."
#define PACKED ".qweight"

static const char *const layer_names[][2] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};
static const char *const top_names[][2] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};
#define N(table) (sizeof table / sizeof *table)

// "model.layers.3.self_attn.q_proj.weight": NULL unless it begins so; else what follows the number.
static const char *layer_of(const char *name, int *layer) {
    char *end;
    if (strncmp(name, LAYER, strlen(LAYER)) || name[strlen(LAYER)] < '0' ||
        name[strlen(LAYER)] > '9')
        return NULL;
    long n = strtol(name + strlen(LAYER), &end, 10);
    if (*end != '.' || n > 9999)
        return NULL;
    *layer = (int)n;
    return end + 1;
}

// GGUF's name for a tensor, or its own when there is none: the check refuses it by that.
static const char *mapped_name(hf *d, const char *name) {
    int layer;
    const char *rest = layer_of(name, &layer);
    for (size_t i = 0; i < N(top_names); i++)
        if (!strcmp(name, top_names[i][0]))
            return top_names[i][1];
    for (size_t i = 0; rest && i < N(layer_names); i++) {
        size_t n = strlen(layer_names[i][0]);
        if (!strncmp(rest, layer_names[i][0], n) &&
            (!strcmp(rest + n, ".weight") || !strcmp(rest + n, ".bias")))
            return arena_printf(&d->memory, "blk.%d.%s%s", layer, layer_names[i][1], rest + n);
    }
    return name;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), n_end = strlen(end);
    return n > n_end && !strcmp(s + n - n_end, end);
}

// What takes no part: buffers of old files, a copy of the tied output matrix, and what is read with
// its .qweight.
static bool is_left_out(const hf *d, const char *name) {
    int layer;
    const char *rest = layer_of(name, &layer);
    if (d->config.quant != HF_FLOATS &&
        (ends_with(name, ".qzeros") || ends_with(name, ".scales") || ends_with(name, ".g_idx")))
        return true;
    if (rest && !strcmp(rest, "self_attn.rotary_emb.inv_freq"))
        return true;
    return d->config.tied && !strcmp(name, "lm_head.weight");
}

static int map_packed(hf *d, const safetensor *t, err *e) {
    gguf_tensor *to = &d->tensors[d->n_tensors];
    const char *stem =
        arena_printf(&d->memory, "%.*s", (int)(strlen(t->name) - strlen(PACKED)), t->name);
    const char *name = mapped_name(d, arena_printf(&d->memory, "%s.weight", stem));
    to->name = (gguf_string){name, strlen(name)};
    if (hf_map_packed(d, t, stem, to, e))
        return -1;
    d->n_tensors++;
    return 0;
}

static int map_tensor(hf *d, const safetensor *t, err *e) {
    gguf_tensor *to = &d->tensors[d->n_tensors];
    const char *name = mapped_name(d, t->name);
    if (d->config.quant != HF_FLOATS && ends_with(t->name, PACKED))
        return map_packed(d, t, e);
    if (safetensor_float_type(t, &to->type, e))
        return -1;
    to->name = (gguf_string){name, strlen(name)};
    to->n_dims = t->n_dims > 0 ? t->n_dims : 1;
    for (int i = 0; i < 4; i++)
        to->dims[i] = i < t->n_dims ? t->dims[t->n_dims - 1 - i] : 1;
    to->data = t->data;
    to->bytes = t->bytes;
    d->n_tensors++;
    return 0;
}

// Llama 3.1's scaling as converters write it.
static void add_divisors(hf *d) {
    const hf_config *c = &d->config;
    d->tensors[d->n_tensors++] = (gguf_tensor){.name = {"rope_freqs.weight", 17},
                                               .n_dims = 1,
                                               .dims = {(uint64_t)c->head_dim / 2, 1, 1, 1},
                                               .data = c->divisors,
                                               .bytes = (uint64_t)c->head_dim / 2 * 4};
}

int hf_map_tensors(hf *d, err *e) {
    const safetensors *shard;
    size_t n = d->first[d->n_shards]; // more than there are tensors
    d->tensors = arena_alloc(&d->memory, (n + 1) * sizeof *d->tensors);
    d->packed = arena_alloc(&d->memory, (n + 1) * sizeof *d->packed);
    for (size_t i = 0; i < d->n_shards; i++)
        for (size_t k = 0; k < safetensors_count(d->shards[i]); k++) {
            const safetensor *t = safetensors_at(d->shards[i], k);
            if (!is_left_out(d, t->name) && map_tensor(d, t, e))
                return -1;
        }
    if (d->config.llama3)
        add_divisors(d);
    if (!d->config.tied && !hf_find(d, "lm_head.weight", &shard))
        return err_set(
            e, ERR_FORMAT, NULL,
            "tensor 'lm_head.weight' is missing, and config.json: tie_word_embeddings is "
            "not true");
    return 0;
}

void hf_explain_tensor(err *e) {
    char from[64], to[64];
    for (size_t i = 0; i < N(top_names); i++)
        hf_replace(e, top_names[i][1], top_names[i][0]);
    if (!strstr(e->message, "'blk."))
        return;
    hf_replace(e, "'blk.", "'" LAYER);
    for (size_t i = 0; i < N(layer_names); i++) {
        snprintf(from, sizeof from, ".%s.", layer_names[i][1]);
        snprintf(to, sizeof to, ".%s.", layer_names[i][0]);
        hf_replace(e, from, to);
    }
}

// What the parts of model/hf*.c share; nobody else includes this.
#ifndef MODEL_HF_INTERNAL_H
#define MODEL_HF_INTERNAL_H
#include "base/arena.h"
#include "base/buf.h"
#include "model/gguf_internal.h"
#include "model/hf.h"
#include "model/json_file.h"
#include "model/safetensors.h"

#define HF_MAX_SHARDS 512
#define HF_MAX_ENDS 16

typedef struct hf_head { // GGUF metadata in the making
    buf keys;
    uint64_t n_keys;
} hf_head;

// key is "general.name", or "%s.block_count" with the architecture put in.
void hf_put_u64(hf_head *h, const char *key, uint64_t v);
void hf_put_f64(hf_head *h, const char *key, double v);
void hf_put_bool(hf_head *h, const char *key, bool v);
void hf_put_text(hf_head *h, const char *key, const char *s);
void hf_put_array(hf_head *h, const char *key, gguf_type element, uint64_t n); // elements follow:
void hf_put_element(hf_head *h, const char *p, size_t n);                      // a string

typedef enum hf_quant {
    HF_FLOATS,
    HF_AWQ,
    HF_GPTQ_V1, // zeros are stored less one
    HF_GPTQ_V2,
} hf_quant;

typedef struct hf_config { // what config.json says and others need
    const char *arch;      // as GGUF spells it
    int64_t n_vocab, head_dim;
    bool tied;
    bool llama3;         // RoPE by parts: frequencies are divided by hf_config.divisors
    float divisors[128]; // [head_dim / 2]
    int64_t ends[HF_MAX_ENDS];
    int n_ends;
    hf_quant quant;
    int64_t group_size; // of quant; -1: one group
} hf_config;

typedef struct hf_packed { // a matrix of 4-bit codes in 32-bit words
    const safetensor *qweight, *qzeros, *scales;
    bool awq;
    unsigned zero_more; // added to a stored zero
    uint64_t n_in, n_out, group_size;
    const int32_t *order;  // [n_in]: the inputs by group; NULL: they stand so
    uint64_t *block_group; // [n_in / 32], with order
} hf_packed;

typedef struct hf { // a directory: the origin of its gguf
    gguf_origin origin;
    buf head;
    arena memory;
    safetensors *shards[HF_MAX_SHARDS];
    size_t n_shards;
    size_t first[HF_MAX_SHARDS + 1]; // stored parts before each shard: its head, then its tensors
    hf_config config;
    gguf_tensor *tensors;
    const hf_packed **packed; // [n_tensors], NULL for one that is mapped
    size_t n_tensors;
} hf;

// hf_config.c: config.json and generation_config.json.
int hf_read_config(const char *directory, hf_config *c, hf_head *h, err *e);
// hf_tokenizer.c: tokenizer.json, tokenizer_config.json, chat_template.jinja.
int hf_read_tokenizer(const char *directory, hf_config *c, hf_head *h, err *e);
// hf_tensors.c: the tensors of the open shards by GGUF's names.
int hf_map_tensors(hf *d, err *e);
const safetensor *hf_find(const hf *d, const char *name, const safetensors **shard);
// hf_packed.c: STEM.qweight and the tensors beside it as one matrix.
int hf_map_packed(hf *d, const safetensor *qweight, const char *stem, gguf_tensor *to, err *e);
void hf_load_packed(const hf_packed *p, void *to);
// A tensor's name in messages about GGUF's.
void hf_explain_tensor(err *e);
// Replaces every `from` in e's message.
void hf_replace(err *e, const char *from, const char *to);

#endif

// What a model is: its file or directory, shape, tokenizer and templates. Opening reads metadata
// and tokenizer only; weights are mapped, never read, here. Read-only after open: any thread.
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/buf.h"
#include "model/fim.h"
#include "model/gguf.h"
#include "model/template.h"
#include "model/tokenizer.h"

typedef enum model_arch { ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3 } model_arch;

// ROPE_LINEAR: frequencies divided by rope_factor. ROPE_YARN: by parts (Peng et al. 2023, beta 32
// and 1, extrapolation 1) from rope_original_context. ROPE_LLAMA3: frequency i is divided by
// element i of the tensor rope_freqs.weight [head_dim / 2], F32, each finite and positive.
typedef enum rope_scaling { ROPE_NONE, ROPE_LINEAR, ROPE_YARN, ROPE_LLAMA3 } rope_scaling;

typedef struct model_shape {
    model_arch arch;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, intermediate, n_vocab;
    int context; // tokens the model was made for
    float rms_eps;
    float rope_base;
    rope_scaling scaling;
    float rope_factor; // 1 unless ROPE_LINEAR or ROPE_YARN
    // The file's own factor on cos and sin (1 when it gives none); YaRN's 1 + 0.1 ln(rope_factor)
    // is not in it and multiplies it.
    float rope_attn_factor;
    int rope_original_context; // ROPE_YARN: tokens before the extension; else the context
    bool tied_head;            // the embedding serves as output matrix (no output.weight)
    bool qkv_bias;             // attn_q, attn_k and attn_v have a bias
    bool rope_pairs; // RoPE turns values 2i and 2i + 1 of a head (GGUF's llama), else i and
                     // i + head_dim / 2
} model_shape;

typedef struct model model;

// path: a GGUF file, or a directory with config.json, tokenizer.json and safetensors.
// template_name: "" or NULL = detect (a model without a chat template opens too; model_template is
// then NULL). Shape and tensor table are checked as by model_check. The message begins with the
// path.
int model_open(const char *path, const char *template_name, model **out, err *e);
// The same without the chat template: model_template is NULL.
int model_open_parts(const char *path, model **out, err *e);
void model_close(model *m); // NULL is fine
const gguf *model_gguf(const model *m);
const model_shape *model_get_shape(const model *m);
const tokenizer *model_tokenizer(const model *m);
const chat_template *model_template(const model *m); // NULL: none
const fim_template *model_fim(const model *m);       // NULL: none
const char *model_file_name(const model *m);         // general.name or the file's stem; printable
// Hex of 16 bytes of SHA-256 over metadata, tensor table and samples of every tensor: 4,096 bytes
// of its start and of its end, 256 at 14 places between; small tensors whole. Tells models and
// fine-tunes apart, in gateway and worker alike; an edit of single weights between the places is
// not seen, so it is no checksum of the file.
const char *model_revision(const model *m);
bool model_is_end(const model *m, int32_t id); // ends an answer (tokenizer or FIM)
const char *model_arch_name(model_arch a);     // as general.architecture spells it

// The parts of the check that need no tokenizer. ERR_FORMAT or ERR_UNSUPPORTED name key or tensor.
int model_read_shape(const gguf *g, model_shape *out, err *e);
// Every tensor of the architecture is there, has the right shape and a supported type, and there is
// no other: norms and biases F32, F16 or BF16 vectors, rope_freqs F32; matrices of any type in
// kernels/ops.h.
int model_check_tensors(const gguf *g, const model_shape *s, err *e);
bool model_tensor_type_supported(uint32_t type);

// Everything that engine_open would need, checked without reading weights. One clear line
// otherwise. Fills a summary for people (several lines). A chat template that is not recognised is
// no error here: the summary says which setting to give.
int model_check(const char *path, buf *summary, err *e);

#endif

// What a model is: its file, shape, tokenizer and templates. Opening reads metadata and tokenizer
// only; weights are mapped, never read, here. Read-only after open: any thread.
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
typedef enum rope_scaling { ROPE_NONE, ROPE_LINEAR, ROPE_YARN, ROPE_LLAMA3 } rope_scaling;

typedef struct model_shape {
    model_arch arch;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, intermediate, n_vocab;
    int context; // tokens the model was made for
    float rms_eps;
    float rope_base;
    rope_scaling scaling;
    float rope_factor, rope_attn_factor;
    int rope_original_context;
    bool tied_head; // the embedding serves as output matrix
} model_shape;

typedef struct model model;

// template_name: "" or NULL = detect (a model without a chat template opens too; model_template is
// then NULL).
int model_open(const char *path, const char *template_name, model **out, err *e);
void model_close(model *m);
const gguf *model_gguf(const model *m);
const model_shape *model_get_shape(const model *m);
const tokenizer *model_tokenizer(const model *m);
const chat_template *model_template(const model *m); // NULL: none
const fim_template *model_fim(const model *m);       // NULL: none
const char *model_file_name(const model *m);         // general.name or the file's stem
// Hex of the first 16 bytes of SHA-256 over metadata and tensor table: tells one revision from
// another.
const char *model_revision(const model *m);
bool model_is_end(const model *m, int32_t id); // ends an answer (tokenizer or FIM)

// Everything that engine_open would need, checked without reading weights: every tensor of the
// architecture is there with the right shape and a supported type. One clear line otherwise. Fills
// a summary for people (several lines).
int model_check(const char *path, buf *summary, err *e);

#endif

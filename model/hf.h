// A Hugging Face model directory (config.json, tokenizer.json, safetensors) presented as what the
// rest of the house reads: GGUF metadata, made in memory, and tensors, left where they are. So one
// set of checks, one tokenizer and one loader serve both formats. The mapping is that of
// llama.cpp's convert_hf_to_gguf.py, but for llama's q and k, which stay as trained
// (model_shape.rope_pairs).
#ifndef MODEL_HF_H
#define MODEL_HF_H
#include <stdbool.h>
#include "model/gguf.h"

bool hf_is_directory(const char *path);
// ERR_IO, ERR_FORMAT or ERR_UNSUPPORTED, naming file and field or tensor. The message begins with
// the path.
int hf_open(const char *directory, gguf **out, err *e);
// Calls each(ctx, name) for every file of the directory that opening reads, in a fixed order, until
// it returns -1, which is then returned. Names are borrowed for the call.
int hf_each_file(const char *directory, int (*each)(void *ctx, const char *name), void *ctx,
                 err *e);
// Names GGUF's keys and tensors in e's message by those of the directory's files.
void hf_explain(err *e);

#endif

// The metadata files of a Hugging Face directory, made from GGUF, for tests. Ends the process where
// a test cannot go on.
#ifndef TESTS_SUPPORT_HF_VOCABULARY_H
#define TESTS_SUPPORT_HF_VOCABULARY_H
#include <stdio.h>
#include "model/model.h"

// Writes tokenizer.json and tokenizer_config.json. pre: a tokenizer.ggml.pre ("smollm", "qwen2",
// "llama-bpe", "gpt-2").
void hf_write_tokenizer(const gguf *g, const char *pre, const char *directory);
void hf_write_config(const model_shape *s, const char *directory);
FILE *hf_open_weights(const char *directory); // model.safetensors
void hf_close_weights(FILE *f);
// All files for a vocabulary without weights: a model of one layer, 8 wide, of zeros.
void hf_write_vocabulary(const gguf *g, const char *pre, const char *directory);
// Removes a directory with files only.
void hf_remove(const char *directory);

#endif

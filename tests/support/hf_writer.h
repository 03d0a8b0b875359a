// Hugging Face directories made from whole GGUF models, for tests: the same weights dequantised
// (llama's q and k as they were trained), the same vocabulary as tokenizer.json. Ends the process
// where a test cannot go on.
#ifndef TESTS_SUPPORT_HF_WRITER_H
#define TESTS_SUPPORT_HF_WRITER_H
#include "kernels/ops.h"
#include "tests/support/hf_vocabulary.h"

// Writes config.json, tokenizer.json, tokenizer_config.json and model.safetensors of m into an
// existing directory. type: WT_F32, WT_F16 or WT_BF16 (rounded to nearest even).
void hf_write_model(const model *m, const char *directory, weight_type type);

#endif

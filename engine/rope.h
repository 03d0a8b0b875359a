// The rotation frequencies of a model, with its context extension already in them.
// Sources: RoPE, Su et al. 2021; linear interpolation, Chen et al. 2023; YaRN, Peng et al. 2023;
// Llama 3.1's scaling as in Hugging Face transformers, modeling_rope_utils.
#ifndef ENGINE_ROPE_H
#define ENGINE_ROPE_H
#include "model/gguf.h"
#include "model/model.h"

#define ROPE_MAX_HEAD_DIM 256 // as model_open has it

// inv_freq[head_dim / 2]; *attn_scale multiplies sine and cosine (YaRN), 1 otherwise. Shape and
// file are as model_open checked them. The file's tensor rope_freqs.weight divides the frequencies
// and then stands for Llama 3's formula; g may be NULL: no such tensor.
void rope_frequencies(const model_shape *s, const gguf *g, float *inv_freq, float *attn_scale);

#endif

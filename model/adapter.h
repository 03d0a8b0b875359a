// Low-rank adapters as files: PEFT directories (adapter_config.json, adapter_model.safetensors) and
// GGUF adapters, both to one GGUF form, in which a worker loads them (engine/lora.h). What PEFT can
// say and that form cannot is refused with the field's name, never dropped.
// Source: PEFT's LoraConfig and llama.cpp's convert_lora_to_gguf.py.
#ifndef MODEL_ADAPTER_H
#define MODEL_ADAPTER_H
#include "base/buf.h"
#include "base/err.h"
#include "model/model.h"

// Appends the adapter at path (a directory or a .gguf file) for a model of that shape, as a GGUF
// file. ERR_IO, ERR_FORMAT or ERR_UNSUPPORTED names file and field or tensor; whether the tensors
// fit the model is engine_adapter_open's to say.
int adapter_read(const char *path, const model_shape *s, buf *out, err *e);

#endif

// Shared by model.c and model_check.c only.
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H
#include "model/model.h"

// model_open without the chat template: file, shape, tensor table, tokenizer, FIM, name, revision.
int model_open_parts(const char *path, model **out, err *e);

#endif

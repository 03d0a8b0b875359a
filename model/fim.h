// Fill-in-the-middle templates: Qwen2.5-Coder (with repository level), StarCoder, CodeLlama. The
// gateway, not the client, spells the control tokens.
#ifndef MODEL_FIM_H
#define MODEL_FIM_H
#include <stddef.h>
#include "base/arena.h"
#include "base/err.h"
#include "model/template.h"

typedef struct fim_template fim_template;

typedef struct fim_file { // a file of the repository given as context, borrowed
    const char *path;
    const char *content;
    size_t n_content;
} fim_file;

typedef struct fim_request {
    const char *prefix, *suffix;
    size_t n_prefix, n_suffix;
    const char *path;       // of the file being edited, or NULL
    const char *repository; // name, or NULL
    const fim_file *files;  // context, in a stable order; may be NULL
    size_t n_files;
} fim_request;

// By the control tokens of the vocabulary; NULL when it has none of a known family.
const fim_template *fim_detect(const tokenizer *t);
const char *fim_name(const fim_template *f); // qwen2.5-coder, starcoder2, starcoder, codellama
// Prefix, suffix, then the place to fill. With files or a repository name the prompt is the
// repository-level one, which is also where the path goes; the file-level prompts have no place for
// a path. ERR_UNSUPPORTED (param "context") when files are given and the family has no repository
// level.
int fim_render(const fim_template *f, const fim_request *r, arena *a, segment_list *out, err *e);
// Tokens that end a completion of this family besides the tokenizer's own (<|file_sep|>, ...): is
// id one of them?
bool fim_is_end(const fim_template *f, const tokenizer *t, int32_t id);

#endif

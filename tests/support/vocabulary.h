// Vocabularies and goldens for the tests of tokenizer, templates and fill-in-the-middle. Fatal on
// misuse; one thread.
#ifndef TESTS_SUPPORT_VOCABULARY_H
#define TESTS_SUPPORT_VOCABULARY_H
#include <stdbool.h>
#include <jansson.h>
#include "base/buf.h"
#include "model/tokenizer.h"
#include "tests/support/gguf_builder.h"

typedef struct vocabulary { // a tokenizer and what it borrows from
    gguf *file;
    buf bytes; // of a file made in memory
    tokenizer *tokens;
} vocabulary;

// Keys of a small byte-level vocabulary: 256 bytes (by id), then what is given. merges: "left
// right".
typedef struct vocabulary_parts {
    const char *pre;
    const char *const *merged; // NULL-terminated lists; their types are normal,
    const char *const *control;
    const char *const *user_defined;
    const char *const *merges;
} vocabulary_parts;
void builder_vocabulary(gguf_builder *b, const vocabulary_parts *p);
// The name that the vocabulary has for a byte (GPT-2's alphabet); out has room for 4.
void byte_name(int byte, char *out);

// Opens the vocabulary in b; on an error e is filled, -1.
int vocabulary_build(vocabulary *v, const gguf_builder *b, err *e);
// "smollm2" (TIERGATE_TEST_MODEL) or "qwen3" (TIERGATE_TEST_VOCAB), with another tokenizer.ggml.pre
// when pre is not NULL. False: the file is not there; says which to set after "skip: ".
bool vocabulary_open(vocabulary *v, const char *name, const char *pre);
void vocabulary_close(vocabulary *v);

json_t *json_gz(const char *path); // the parsed file, gunzipped; caller decrefs

#endif

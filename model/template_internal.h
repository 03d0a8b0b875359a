// What the parts of the chat templates (template*.c, fim.c) share; nobody else includes this.
#ifndef MODEL_TEMPLATE_INTERNAL_H
#define MODEL_TEMPLATE_INTERNAL_H
#include "base/buf.h"
#include "model/template.h"

typedef enum template_family { FAMILY_CHATML, FAMILY_QWEN3, FAMILY_LLAMA3 } template_family;

struct chat_template {
    const char *name; // at most 15 bytes: what [model NAME] template= takes
    template_family family;
    bool tools;                 // has a way to write the role "tool"
    bool preamble;              // Llama 3.1: the dates in front
    const char *default_system; // written when the conversation has no system message; or NULL
    const char *opening;        // Qwen3: what an answer starts with after the header; or NULL
};

extern const chat_template templates[];
extern const size_t n_templates;

void segment_put(arena *a, segment_list *l, const char *text, size_t n, bool trusted);

#endif

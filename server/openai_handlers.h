// Handlers of the API's routes. Each answers its call, at once or later.
#ifndef SERVER_OPENAI_HANDLERS_H
#define SERVER_OPENAI_HANDLERS_H

typedef struct call call;

void handle_models(call *c);
void handle_model(call *c);
void handle_chat(call *c);
void handle_completions(call *c);
void handle_tokenize(call *c);
void handle_detokenize(call *c);

#endif

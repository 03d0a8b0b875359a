// Templates and tokenises what a request asks. Runs on the reactor for short prompts, on a pool
// thread for long ones; touches its arguments and the model, which is read-only. User text is never
// parsed for control tokens; ids that a client sends are taken as they are.
#include "server/openai_prompt.h"

int openai_prompt_count(const openai_request *q) { return q->messages ? 1 : q->n_prompts; }

static int check_ids(const int32_t *ids, int n, int n_vocab, const char *path, err *e) {
    for (int i = 0; i < n; i++)
        if (ids[i] >= n_vocab) {
            json_path at = json_path_element(path, (size_t)i);
            return err_set(e, ERR_INVALID, at.text, "'%s' is %d, but the model has %d tokens only.",
                           at.text, ids[i], n_vocab);
        }
    return 0;
}

static int check_bias(const openai_request *q, int n_vocab, err *e) {
    for (int i = 0; i < q->sampling.n_bias; i++)
        if (q->sampling.bias[i].id >= n_vocab)
            return err_set(e, ERR_INVALID, "logit_bias",
                           "'logit_bias' names token %d, but the model has %d tokens only.",
                           q->sampling.bias[i].id, n_vocab);
    return 0;
}

static int encode_messages(const openai_request *q, const catalogue_entry *m, arena *a,
                           token_list *out, err *e) {
    const chat_template *template = model_template(m->model);
    if (!template)
        return err_set(e, ERR_UNSUPPORTED, "messages",
                       "The model '%s' has no chat template; use /v1/completions.",
                       m->config->name);
    bool opens_turn = q->kind == OPENAI_CHAT || q->add_generation_prompt;
    segment_list segments = {0};
    if (template_render(template, q->messages, q->n_messages, opens_turn, a, &segments, e))
        return -1;
    return template_encode(model_tokenizer(m->model), &segments, out, e);
}

static int encode_fim(const openai_request *q, const openai_prompt *p, const catalogue_entry *m,
                      arena *a, token_list *out, err *e) {
    const fim_template *fim = model_fim(m->model);
    if (!fim)
        return err_set(e, ERR_NO_FIM, "suffix",
                       "The model '%s' has no tokens for filling in the middle.", m->config->name);
    fim_request r = {
        .prefix = p->text.s, .n_prefix = p->text.n, .suffix = q->suffix.s, .n_suffix = q->suffix.n};
    segment_list segments = {0};
    if (fim_render(fim, &r, a, &segments, e))
        return -1;
    return template_encode(model_tokenizer(m->model), &segments, out, e);
}

static int encode_prompt(const openai_request *q, const openai_prompt *p, const catalogue_entry *m,
                         arena *a, token_list *out, err *e) {
    const tokenizer *t = model_tokenizer(m->model);
    if (p->ids) {
        if (check_ids(p->ids, p->n_ids, tokenizer_n_vocab(t), p->path.text, e))
            return -1;
        for (int i = 0; i < p->n_ids; i++)
            token_list_push(out, p->ids[i]);
        return 0;
    }
    if (q->suffix.s)
        return encode_fim(q, p, m, a, out, e);
    if (q->kind == OPENAI_TOKENIZE && !q->add_special_tokens)
        return tokenizer_encode(t, p->text.s, p->text.n, false, out, e);
    segment plain = {.text = p->text.s, .n = p->text.n, .trusted = false};
    segment_list segments = {.items = &plain, .n = 1, .cap = 1};
    return template_encode(t, &segments, out, e);
}

static int check_length(const openai_request *q, const catalogue_entry *m, const char *path,
                        size_t n, err *e) {
    if (q->kind != OPENAI_CHAT && q->kind != OPENAI_COMPLETION)
        return 0;
    if (n == 0)
        return err_set(e, ERR_INVALID, path, "'%s' must make at least one token.", path);
    size_t wanted = q->max_tokens ? (size_t)q->max_tokens : 1;
    if (n + wanted <= (size_t)m->max_context)
        return 0;
    return err_set(e, ERR_CONTEXT_LENGTH, path,
                   "This model's maximum context length is %d tokens. However, you requested %zu "
                   "tokens (%zu in '%s', %s%zu in the completion). Please reduce the length of "
                   "either.",
                   m->max_context, n + wanted, n, path, q->max_tokens ? "" : "at least ", wanted);
}

int openai_prompt_encode(const openai_request *q, const catalogue_entry *m, arena *a,
                         token_list *out, err *e) {
    if (check_bias(q, tokenizer_n_vocab(model_tokenizer(m->model)), e))
        return -1;
    if (q->messages)
        return encode_messages(q, m, a, out, e) || check_length(q, m, "messages", out->n, e) ? -1
                                                                                             : 0;
    for (int i = 0; i < q->n_prompts; i++) {
        const openai_prompt *p = &q->prompts[i];
        if (encode_prompt(q, p, m, a, &out[i], e) || check_length(q, m, p->path.text, out[i].n, e))
            return -1;
    }
    return 0;
}

void openai_prompt_text(const tokenizer *t, const int32_t *ids, size_t n, buf *out) {
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = tokenizer_piece(t, ids[i], true, &bytes);
        buf_put(out, piece, bytes);
    }
}

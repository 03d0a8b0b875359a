// Whether sampling parameters make sense for a vocabulary. Pure; any thread. The API refuses these
// earlier with its own words; this is what the engine itself relies on.
#include "engine/sample.h"

// Written so that a NaN fails.
static int in_range(float v, float low, float high, const char *name, err *e) {
    if (v >= low && v <= high)
        return 0;
    return err_set(e, ERR_INVALID, name, "%s must be between %g and %g", name, (double)low,
                   (double)high);
}

static int check_bias(const sampling_params *p, int n_vocab, err *e) {
    if (p->n_bias < 0 || p->n_bias > SAMPLING_MAX_BIAS)
        return err_set(e, ERR_INVALID, "logit_bias", "logit_bias may name at most %d tokens",
                       SAMPLING_MAX_BIAS);
    for (int i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id < 0 || p->bias[i].id >= n_vocab)
            return err_set(e, ERR_INVALID, "logit_bias", "logit_bias names token %d of %d",
                           p->bias[i].id, n_vocab);
        if (in_range(p->bias[i].bias, -100, 100, "logit_bias", e))
            return -1;
    }
    return 0;
}

int sampling_check(const sampling_params *p, int n_vocab, err *e) {
    if (in_range(p->temperature, 0, 100, "temperature", e) ||
        in_range(p->top_p, 0, 1, "top_p", e) || in_range(p->min_p, 0, 1, "min_p", e) ||
        in_range(p->presence_penalty, -2, 2, "presence_penalty", e) ||
        in_range(p->frequency_penalty, -2, 2, "frequency_penalty", e) ||
        in_range(p->repetition_penalty, 0.01f, 100, "repetition_penalty", e))
        return -1;
    if (p->top_p == 0)
        return err_set(e, ERR_INVALID, "top_p", "top_p must be greater than 0");
    if (p->top_k < 0)
        return err_set(e, ERR_INVALID, "top_k", "top_k must be 0 (off) or greater");
    if (p->n_top_logprobs < -1 || p->n_top_logprobs > ENGINE_TOP)
        return err_set(e, ERR_INVALID, "top_logprobs", "top_logprobs must be at most %d",
                       ENGINE_TOP);
    return check_bias(p, n_vocab, e);
}

bool sampling_has_penalty(const sampling_params *p) {
    return p->presence_penalty != 0 || p->frequency_penalty != 0 || p->repetition_penalty != 1;
}

// From logits to a token. Order of the steps, as vLLM has it, each on the result of the one before:
//   1. logit bias is added
//   2. repetition penalty (prompt and answer): a positive logit is divided by it, another
//   multiplied
//   3. OpenAI's penalties (answer only): minus count * frequency_penalty, minus presence_penalty
//   4. temperature 0: the greatest logit, the lowest id on a tie. Otherwise logits / temperature
//   5. top_k: the k most probable
//   6. top_p: of these, the fewest most probable whose share of their sum reaches top_p
//   7. min_p: of these, those at least min_p times as probable as the most probable token
//   8. one is drawn with Philox(seed, choice, position) by the inverse of the distribution in id
//   order
// "Most probable" is ordered by logit, then by lower id. Log-probabilities are those of the raw
// logits, before step 1. Probabilities are summed as integers of 2^-40 of the greatest, so no
// result depends on the number of threads, nor on other rows; what is less probable than that is
// never drawn.
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H
#include <stdint.h>
#include "base/err.h"
#include "engine/counts.h"
#include "engine/engine.h"
#include "kernels/ops.h"
#include "model/sampling.h"

typedef struct sampler sampler;

typedef struct sample_item {
    float *logits; // [n_vocab], overwritten
    const sampling_params *params;
    token_counts *counts; // NULL without penalties
    int choice;
    int position;        // of the token to be drawn
    int32_t given;       // >= 0: nothing is drawn, this id is described instead; -1: draw
    engine_sampled *out; // logprob is 0 where n_top_logprobs is -1 and nothing is given
} sample_item;

// o may be NULL: then all runs in the calling thread.
sampler *sampler_open(ops *o, int n_vocab);
void sampler_close(sampler *s);
// Fills every item's out. A logit that is not finite: ERR_INTERNAL, *bad is the item's index, other
// outs are filled or not.
int sampler_run(sampler *s, const sample_item *items, int n, int *bad, err *e);

// ERR_INVALID names the parameter that is out of range or an id that the vocabulary lacks.
int sampling_check(const sampling_params *p, int n_vocab, err *e);
bool sampling_has_penalty(const sampling_params *p);

#endif

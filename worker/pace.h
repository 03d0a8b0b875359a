// How many prompt tokens a pass may take beside sequences that decode, so that their tokens keep
// coming: the prompts' part of a pass may take as long as so many percent of the decoding part.
// Learned from the passes themselves, because it depends on model, machine, company and depth.
#ifndef WORKER_PACE_H
#define WORKER_PACE_H
#include <stdint.h>

#define PACE_LEAST 4 // prompt tokens of a pass: a prompt always goes on
#define PACE_SIZES 8 // of company: 1, 2, 3-4, 5-8, ... 65 and more rows

typedef struct pace {             // starts as zeros but for percent
    int percent;                  // 0: prompts take what the pass has room for
    double decode_us[PACE_SIZES]; // a pass that only decodes, as of late; 0: not seen yet
    double prompt_us;             // what a prompt token adds, as of late
} pace;

// A pass of n_decode rows and n_prompt prompt tokens took so long.
void pace_learn(pace *p, int n_decode, int n_prompt, int64_t us);
// Prompt tokens of the next pass beside n_decode rows: at most most, at least PACE_LEAST or most.
int pace_prompt_tokens(const pace *p, int n_decode, int most);

#endif

// Prompt lookup (Saxena 2023): what followed the last few tokens when they stood in the text before
// is a good guess of what follows now: code is edited, quoted and tested more than it is invented.
// The engine samples each place as if nothing had been guessed, so guesses change speed alone.
#ifndef WORKER_DRAFT_H
#define WORKER_DRAFT_H
#include <stdint.h>

#define DRAFT_MOST 8 // tokens guessed at a time

typedef struct draft_pace { // how far one choice is worth guessing; starts as zeros
    int most;               // guesses at its next try; 0: not tried yet
    int misses;             // tries in a row of which nothing was right
    int wait;               // steps until the next try
} draft_pace;

// The tokens that followed the latest of the longest earlier occurrences of the end of tokens[0..n)
// (at least two tokens long): at most `most`, to out. Returns how many; 0: never stood before.
int draft_find(const int32_t *tokens, int n, int most, int32_t *out);
// Guesses that a choice may make in this step; counts the step as waited where it may make none.
int draft_may(draft_pace *p);
// Of n > 0 guesses, so many were right: twice as many next time when all were, and after tries with
// none right 2, 4, ... at most 64 steps without one.
void draft_learn(draft_pace *p, int n, int right);

#endif

// Finding and pacing guesses. Knows nothing of the engine; the step thread's.
#include "worker/draft.h"
#include <string.h>

enum { LEAST_MATCH = 2, MOST_MATCH = 16, FIRST_TRY = 2, MOST_MISSES = 6 };

// How many tokens before end equal those before n, at most MOST_MATCH.
static int match(const int32_t *tokens, int n, int end) {
    int k = 0;
    while (k < MOST_MATCH && k < end && tokens[end - 1 - k] == tokens[n - 1 - k])
        k++;
    return k;
}

int draft_find(const int32_t *tokens, int n, int most, int32_t *out) {
    int best = LEAST_MATCH - 1, at = 0;
    for (int end = n - 1; end > best && best < MOST_MATCH; end--) {
        int k = tokens[end - 1] == tokens[n - 1] ? match(tokens, n, end) : 0;
        if (k > best) {
            best = k;
            at = end;
        }
    }
    int found = at ? n - at : 0;
    if (found > most)
        found = most;
    memcpy(out, tokens + at, (size_t)found * sizeof *out);
    return found;
}

int draft_may(draft_pace *p) {
    if (p->wait > 0) {
        p->wait--;
        return 0;
    }
    return p->most ? p->most : FIRST_TRY;
}

void draft_learn(draft_pace *p, int n, int right) {
    p->most = right < n ? right + 1 : 2 * n < DRAFT_MOST ? 2 * n : DRAFT_MOST;
    p->misses = right ? 0 : p->misses < MOST_MISSES ? p->misses + 1 : MOST_MISSES;
    p->wait = p->misses ? 1 << p->misses : 0;
}

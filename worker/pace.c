// Two moving averages; the step thread's.
#include "worker/pace.h"

#define WEIGHT 0.2 // of the newest pass

static void blend(double *mean, double x) { *mean = *mean > 0 ? *mean + WEIGHT * (x - *mean) : x; }

static int size_of(int n_decode) {
    int size = 0;
    while (size < PACE_SIZES - 1 && n_decode > 1 << size)
        size++;
    return size;
}

// Of a pass with so much company, or the nearest that was seen, the smaller first; 0: none was.
static double decode_us(const pace *p, int n_decode) {
    int size = size_of(n_decode);
    for (int i = size; i >= 0; i--)
        if (p->decode_us[i] > 0)
            return p->decode_us[i];
    for (int i = size; i < PACE_SIZES; i++)
        if (p->decode_us[i] > 0)
            return p->decode_us[i];
    return 0;
}

void pace_learn(pace *p, int n_decode, int n_prompt, int64_t us) {
    double alone = n_decode ? decode_us(p, n_decode) : 0;
    if (n_prompt == 0)
        blend(&p->decode_us[size_of(n_decode)], (double)us);
    else if ((double)us > alone) // a pass as quick as without prompts tells nothing
        blend(&p->prompt_us, ((double)us - alone) / n_prompt);
}

int pace_prompt_tokens(const pace *p, int n_decode, int most) {
    double alone = n_decode ? decode_us(p, n_decode) : 0;
    if (!p->percent || alone <= 0 || p->prompt_us <= 0)
        return most;
    double n = alone * p->percent / 100 / p->prompt_us;
    int tokens = n < PACE_LEAST ? PACE_LEAST : n > most ? most : (int)n;
    return tokens < most ? tokens : most;
}

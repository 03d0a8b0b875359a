// Which tokens survive top_k, top_p and min_p, without sorting the vocabulary: each keeps a prefix
// of the same order, so a cut (key, id) says it all, found by a radix search over 11 + 11 + 10 bits
// of the key with counts or masses per bin. Owns nothing; runs on the crew.
#include "engine/sample_internal.h"
#include <math.h>

typedef struct mass_job {
    const sample_crew *crew;
    const sample_dist *d;
} mass_job;

// sample_weight() of each of a block, in two loops of which the first is vectorised.
static void weigh_block(const sample_dist *d, int from, int to, uint64_t *out) {
    float w[SAMPLE_BLOCK];
    for (int i = from; i < to; i++)
        w[i - from] = sample_exp((d->logits[i] - d->max) / d->temperature);
    for (int i = from; i < to; i++)
        out[i - from] = (uint64_t)(int64_t)(w[i - from] * 1099511627776.0f);
}

static uint64_t block_weight(const sample_dist *d, int from, int to) {
    uint64_t sum = 0;
    if (d->cut.key == 0) { // nothing is cut
        uint64_t w[SAMPLE_BLOCK];
        weigh_block(d, from, to, w);
        for (int i = 0; i < to - from; i++)
            sum += w[i];
        return sum;
    }
    for (int i = from; i < to; i++)
        if (sample_alive(&d->cut, sample_key(d->logits[i]), i))
            sum += sample_weight(d->logits[i], d->max, d->temperature);
    return sum;
}

static void mass_part(void *ctx, int part, int n_parts) {
    mass_job *j = ctx;
    int from, to;
    sample_range(j->crew->n_vocab, part, n_parts, &from, &to);
    for (int b = from; b < to; b += SAMPLE_BLOCK)
        j->crew->block_mass[b / SAMPLE_BLOCK] =
            block_weight(j->d, b, b + SAMPLE_BLOCK < to ? b + SAMPLE_BLOCK : to);
}

uint64_t sample_mass(const sample_crew *c, const sample_dist *d) {
    mass_job j = {.crew = c, .d = d};
    uint64_t sum = 0;
    sample_run(c, mass_part, &j);
    for (int b = 0; b * SAMPLE_BLOCK < c->n_vocab; b++)
        sum += c->block_mass[b];
    return sum;
}

// One radix pass: keys whose bits above shift + width are `prefix`, binned by the next bits.
typedef struct bin_job {
    const sample_crew *crew;
    const sample_dist *d;
    uint32_t prefix;
    int shift, width;
    bool by_mass;
} bin_job;

// The first pass weighs nearly all, the later ones few.
static void bin_block(const bin_job *j, int from, int to, sample_bins *bins) {
    uint32_t mask = (1u << j->width) - 1;
    uint64_t w[SAMPLE_BLOCK];
    bool weighed = j->by_mass && j->shift + j->width == 32;
    if (weighed)
        weigh_block(j->d, from, to, w);
    for (int i = from; i < to; i++) {
        uint32_t key = sample_key(j->d->logits[i]);
        if ((uint64_t)key >> (j->shift + j->width) != j->prefix ||
            !sample_alive(&j->d->cut, key, i))
            continue;
        uint32_t bin = key >> j->shift & mask;
        bins->count[bin]++;
        if (j->by_mass)
            bins->mass[bin] += weighed
                                   ? w[i - from]
                                   : sample_weight(j->d->logits[i], j->d->max, j->d->temperature);
    }
}

static void bin_part(void *ctx, int part, int n_parts) {
    const bin_job *j = ctx;
    sample_bins *bins = &j->crew->parts[part].bins;
    int from, to;
    memset(bins, 0, sizeof *bins);
    sample_range(j->crew->n_vocab, part, n_parts, &from, &to);
    for (int b = from; b < to; b += SAMPLE_BLOCK)
        bin_block(j, b, b + SAMPLE_BLOCK < to ? b + SAMPLE_BLOCK : to, bins);
}

// The `nth` surviving token (from 1, by id) with just this key.
static int32_t nth_tie(const sample_crew *c, const sample_dist *d, uint32_t key, uint64_t nth) {
    for (int32_t i = 0; i < c->n_vocab; i++)
        if (sample_key(d->logits[i]) == key && sample_alive(&d->cut, key, i) && --nth == 0)
            return i;
    return INT32_MAX;
}

// Takes the bin, from the top, in which the running sum reaches *target; leaves the rest in
// *target.
static uint32_t take_bin(const bin_job *j, int n_parts, uint64_t *target, uint64_t *count) {
    for (int bin = (1 << j->width) - 1;; bin--) {
        uint64_t sum = 0;
        *count = 0;
        for (int p = 0; p < n_parts; p++) {
            *count += j->crew->parts[p].bins.count[bin];
            sum += j->crew->parts[p].bins.mass[bin];
        }
        if (!j->by_mass)
            sum = *count;
        if (sum >= *target || bin == 0)
            return (uint32_t)bin;
        *target -= sum;
    }
}

// The shortest prefix whose count or mass reaches target (at least 1, at most what survives now).
static sample_cut find_prefix(const sample_crew *c, const sample_dist *d, bool by_mass,
                              uint64_t target) {
    static const struct { int shift, width; } passes[] = {{21, 11}, {10, 11}, {0, 10}};
    uint32_t key = 0;
    uint64_t count = 0;
    for (int i = 0; i < 3; i++) {
        bin_job j = {.crew = c,
                     .d = d,
                     .prefix = key,
                     .shift = passes[i].shift,
                     .width = passes[i].width,
                     .by_mass = by_mass};
        sample_run(c, bin_part, &j);
        key = key << j.width | take_bin(&j, c->n_parts, &target, &count);
    }
    if (by_mass && count > 1) { // ties weigh the same
        uint64_t each = c->parts[0].bins.mass[key & 1023];
        for (int p = 1; p < c->n_parts; p++)
            each += c->parts[p].bins.mass[key & 1023];
        each /= count;
        target = (target + each - 1) / each; // each > 0, or the mass could not have been reached
    } else if (by_mass)
        target = 1;
    return (sample_cut){.key = key,
                        .last_id = target < count ? nth_tie(c, d, key, target) : INT32_MAX};
}

static void tighten(sample_cut *c, sample_cut with) {
    if (with.key > c->key || (with.key == c->key && with.last_id < c->last_id))
        *c = with;
}

void sample_truncate(const sample_crew *c, sample_dist *d, const sampling_params *p) {
    if (p->top_k > 0 && p->top_k < c->n_vocab)
        tighten(&d->cut, find_prefix(c, d, false, (uint64_t)p->top_k));
    if (p->top_p < 1) {
        uint64_t mass = sample_mass(c, d), target = (uint64_t)((double)p->top_p * (double)mass);
        tighten(&d->cut, find_prefix(c, d, true, target < 1 ? 1 : target));
    }
    if (p->min_p > 0) {
        float least = d->max + d->temperature * logf(p->min_p);
        tighten(&d->cut, (sample_cut){.key = sample_key(least), .last_id = INT32_MAX});
    }
}

// Matrices that AWQ and GPTQ packed into 32-bit words, column by column, as rows of WT_INT4 blocks
// (kernels/ops.h): made when the loader asks for them. Owns nothing beyond the directory's arena.
// No value is rounded: scale, zero and code stay the source's own. Source: AutoAWQ's pack_utils.py
// (version "gemm"), AutoGPTQ's and GPTQModel's qlinear_torch.py.
#include "model/hf_internal.h"
#include <string.h>

#define PER_WORD 8 // 4-bit codes of a 32-bit word
#define BLOCK 32
#define BLOCK_BYTES 20
#define OUTPUTS 128 // that are made together
#define TYPE_INT4 60u

static uint32_t word_at(const safetensor *t, uint64_t row, uint64_t column) {
    const uint8_t *p = (const uint8_t *)t->data + (row * t->dims[1] + column) * 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// Where AWQ puts value i of eight within its word, in nibbles.
static unsigned awq_place(uint64_t i) {
    static const uint8_t places[PER_WORD] = {0, 4, 1, 5, 2, 6, 3, 7};
    return places[i % PER_WORD];
}

// The codes of input k for outputs c .. c + n - 1; c and n are multiples of 8.
static void read_codes(const hf_packed *p, uint64_t k, uint64_t c, uint64_t n, uint8_t *codes) {
    if (p->awq) {
        for (uint64_t i = 0; i < n; i += PER_WORD) {
            uint32_t word = word_at(p->qweight, k, (c + i) / PER_WORD);
            for (unsigned v = 0; v < PER_WORD; v++)
                codes[i + v] = (uint8_t)(word >> 4 * awq_place(v) & 15);
        }
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)(word_at(p->qweight, k / PER_WORD, c + i) >> 4 * (k % PER_WORD) & 15);
}

static unsigned zero_at(const hf_packed *p, uint64_t group, uint64_t c) {
    unsigned place = p->awq ? awq_place(c) : (unsigned)(c % PER_WORD);
    return (word_at(p->qzeros, group, c / PER_WORD) >> 4 * place & 15) + p->zero_more;
}

// Block b of outputs c .. c + n - 1: 32 inputs in the order of groups. A row of the words is read
// at a time, since those of one output lie far apart.
static void make_blocks(const hf_packed *p, uint64_t c, uint64_t n, uint64_t b, uint8_t *to) {
    uint8_t codes[BLOCK][OUTPUTS];
    uint64_t group = p->order ? p->block_group[b] : b * BLOCK / p->group_size;
    uint64_t row_bytes = p->n_in / BLOCK * BLOCK_BYTES;
    for (uint64_t i = 0; i < BLOCK; i++)
        read_codes(p, p->order ? (uint64_t)p->order[b * BLOCK + i] : b * BLOCK + i, c, n, codes[i]);
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *block = to + (c + i) * row_bytes + b * BLOCK_BYTES;
        memcpy(block, (const uint8_t *)p->scales->data + (group * p->n_out + c + i) * 2, 2);
        block[2] = (uint8_t)zero_at(p, group, c + i);
        block[3] = 0;
        for (int k = 0; k < BLOCK / 2; k++)
            block[4 + k] = (uint8_t)(codes[k][i] | codes[k + BLOCK / 2][i] << 4);
    }
}

void hf_load_packed(const hf_packed *p, void *to) {
    for (uint64_t c = 0; c < p->n_out; c += OUTPUTS)
        for (uint64_t b = 0; b < p->n_in / BLOCK; b++)
            make_blocks(p, c, p->n_out - c < OUTPUTS ? p->n_out - c : OUTPUTS, b, to);
}

// ---- finding and checking the parts

// Part "STEM.suffix" with that type and shape.
static const safetensor *find_part(hf *d, const char *stem, const char *suffix, const char *dtype,
                                   uint64_t rows, uint64_t columns, err *e) {
    const safetensors *shard;
    const char *name = arena_printf(&d->memory, "%s.%s", stem, suffix);
    const safetensor *t = hf_find(d, name, &shard);
    if (!t)
        err_set(e, ERR_FORMAT, NULL, "tensor '%.80s' is missing", name);
    else if (strcmp(t->dtype, dtype))
        err_set(e, ERR_UNSUPPORTED, NULL, "tensor '%.80s' is %s; %s is supported", name, t->dtype,
                dtype);
    else if (t->dims[0] != rows || t->dims[1] != columns || t->n_dims > 2)
        err_set(e, ERR_FORMAT, NULL, "tensor '%.80s' is [%llu, %llu]; expected is [%llu, %llu]",
                name, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                (unsigned long long)rows, (unsigned long long)columns);
    else
        return t;
    return NULL;
}

// Act-order: the inputs of a group stand apart. Sorted by group (stable), they fill whole blocks.
static int read_order(hf *d, hf_packed *p, const safetensor *index, uint64_t n_groups, err *e) {
    int32_t *order = arena_alloc(&d->memory, p->n_in * sizeof *order);
    uint64_t *next = arena_alloc(&d->memory, (n_groups + 1) * sizeof *next);
    bool in_order = true;
    for (uint64_t k = 0; k < p->n_in; k++) {
        uint32_t group = word_at(index, k, 0);
        if (group >= n_groups)
            return err_set(e, ERR_FORMAT, NULL, "tensor '%.80s': element %llu is no group of %llu",
                           index->name, (unsigned long long)k, (unsigned long long)n_groups);
        next[group + 1]++;
        in_order &= group == k / p->group_size;
    }
    if (in_order)
        return 0;
    p->block_group = arena_alloc(&d->memory, p->n_in / BLOCK * sizeof *p->block_group);
    for (uint64_t g = 0; g < n_groups; g++) {
        if (next[g + 1] % BLOCK)
            return err_set(e, ERR_UNSUPPORTED, NULL,
                           "tensor '%.80s': group %llu has %llu inputs, no multiple of %d",
                           index->name, (unsigned long long)g, (unsigned long long)next[g + 1],
                           BLOCK);
        for (uint64_t b = 0; b < next[g + 1] / BLOCK; b++)
            p->block_group[next[g] / BLOCK + b] = g;
        next[g + 1] += next[g];
    }
    for (uint64_t k = 0; k < p->n_in; k++)
        order[next[word_at(index, k, 0)]++] = (int32_t)k;
    p->order = order;
    return 0;
}

static int read_parts(hf *d, hf_packed *p, const char *stem, err *e) {
    const safetensors *shard;
    const hf_config *c = &d->config;
    p->awq = c->quant == HF_AWQ;
    p->zero_more = c->quant == HF_GPTQ_V1; // it stores zeros less one
    p->n_in = p->qweight->dims[0] * (p->awq ? 1 : PER_WORD);
    p->n_out = p->qweight->dims[1] * (p->awq ? PER_WORD : 1);
    p->group_size = c->group_size > 0 ? (uint64_t)c->group_size : p->n_in;
    if (strcmp(p->qweight->dtype, "I32") || p->qweight->n_dims != 2 || p->n_in % BLOCK ||
        p->n_in % p->group_size || p->n_out % PER_WORD || p->n_in > INT32_MAX || !p->n_out)
        return err_set(
            e, ERR_UNSUPPORTED, NULL,
            "tensor '%.80s': %llu inputs in groups of %llu and %llu outputs; whole groups "
            "of multiples of %d in I32 are supported",
            p->qweight->name, (unsigned long long)p->n_in, (unsigned long long)p->group_size,
            (unsigned long long)p->n_out, BLOCK);
    uint64_t groups = p->n_in / p->group_size;
    p->qzeros = find_part(d, stem, "qzeros", "I32", groups, p->n_out / PER_WORD, e);
    p->scales = p->qzeros ? find_part(d, stem, "scales", "F16", groups, p->n_out, e) : NULL;
    if (!p->scales)
        return -1;
    const char *name = arena_printf(&d->memory, "%s.g_idx", stem);
    if (p->awq || !hf_find(d, name, &shard))
        return 0;
    const safetensor *index = find_part(d, stem, "g_idx", "I32", p->n_in, 1, e);
    return index ? read_order(d, p, index, groups, e) : -1;
}

int hf_map_packed(hf *d, const safetensor *qweight, const char *stem, gguf_tensor *to, err *e) {
    hf_packed *p = arena_alloc(&d->memory, sizeof *p);
    p->qweight = qweight;
    if (read_parts(d, p, stem, e))
        return -1;
    to->type = TYPE_INT4;
    to->n_dims = 2;
    to->dims[0] = p->n_in;
    to->dims[1] = p->n_out;
    to->dims[2] = to->dims[3] = 1;
    to->bytes = p->n_out * (p->n_in / BLOCK) * BLOCK_BYTES;
    to->order = p->order;
    d->packed[to - d->tensors] = p;
    return 0;
}

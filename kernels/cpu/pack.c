// Repacks matrices of a model file into panels of 16 rows that both instruction sets read. Runs at
// load, split over the backend's team or in one thread; plain C. Every code is kept exactly: Q6_K
// keeps its scales per 16 values as two scales a block. Scales and minima become fp16: exact where
// the file has fp16 scales, rounded to 11 bits (2^-12 of the value at most, NMSE 2e-8) for the K
// formats, whose scale is a product; a power of two per row keeps those products inside fp16's
// range. Owns the panels until weight_free_panels.
#include "kernels/cpu/cpu.h"
#include "kernels/dequant.h"
#include "kernels/half.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE = 2 << 20, PAD = 4096 }; // PAD: kernels may prefetch past the end

static panel_kind kind_of(weight_type t) {
    switch (t) {
    case WT_Q4_0:
        return PANEL_W4;
    case WT_Q4_1:
    case WT_Q4_K:
        return PANEL_W4M;
    case WT_INT4:
        return PANEL_W4Z;
    case WT_Q5_0:
        return PANEL_W5;
    case WT_Q5_1:
    case WT_Q5_K:
        return PANEL_W5M;
    case WT_Q6_K:
        return PANEL_W6;
    case WT_Q8_0:
        return PANEL_W8;
    case WT_F16:
        return PANEL_F16;
    case WT_BF16:
        return PANEL_BF16;
    case WT_F32:
        return PANEL_F32;
    }
    return PANEL_KINDS;
}

static bool is_float(panel_kind k) { return k >= PANEL_F16; }
static bool has_second(panel_kind k) {
    return k == PANEL_W4M || k == PANEL_W4Z || k == PANEL_W5M || k == PANEL_W6;
}
static bool is_nibbles(panel_kind k) { return k == PANEL_W4 || k == PANEL_W4M || k == PANEL_W4Z; }

size_t panel_block_bytes(panel_kind k) {
    if (is_float(k))
        return (k == PANEL_F32 ? 4u : 2u) * PANEL_ROWS;
    return (has_second(k) ? 64u : 32u) + (is_nibbles(k) ? 256u : 512u);
}

static size_t panel_bytes(panel_kind k, int64_t n_in) {
    return panel_block_bytes(k) * (size_t)(is_float(k) ? n_in : n_in / GROUP);
}

uint64_t weight_packed_bytes(weight_type t, int64_t n_out, int64_t n_in) {
    return (uint64_t)((n_out + PANEL_ROWS - 1) / PANEL_ROWS) * panel_bytes(kind_of(t), n_in);
}

// What is added to a signed code to store it.
static int code_offset(panel_kind k, int w8_offset) {
    switch (k) {
    case PANEL_W4:
        return 8;
    case PANEL_W5:
        return 16;
    case PANEL_W6:
        return 32;
    case PANEL_W8:
        return w8_offset;
    default:
        return 0;
    }
}

static unsigned extras_of(panel_kind k, int w8_offset) {
    switch (k) {
    case PANEL_W4:
        return 1u << EXTRA_8;
    case PANEL_W4M:
    case PANEL_W4Z:
    case PANEL_W5M:
        return 1u << EXTRA_SUM;
    case PANEL_W5:
        return 1u << EXTRA_16;
    case PANEL_W6:
        return 1u << EXTRA_32;
    case PANEL_W8:
        return w8_offset ? 1u << EXTRA_128 : 0;
    default:
        return 0;
    }
}

typedef struct row_source {
    weight_type type;
    const uint8_t *data;
    int64_t n_in;
} row_source;

static row_source source_row(const weight_source *s, int64_t row) {
    int n_values = 1, n_bytes = 0;
    weight_type_block(s->type, &n_values, &n_bytes);
    return (row_source){s->type, (const uint8_t *)s->data + row * (s->n_in / n_values) * n_bytes,
                        s->n_in};
}

// The power of two that brings the largest scale or minimum a K row can have to fp16's upper range.
static float row_factor(const row_source *r) {
    if (r->type != WT_Q4_K && r->type != WT_Q5_K && r->type != WT_Q6_K)
        return 1;
    float largest = quant_row_bound(r->type, r->data, r->n_in);
    if (!(largest > 0) || isinf(largest))
        return 1;
    int exponent;
    frexpf(largest, &exponent);
    return ldexpf(1, exponent - 14);
}

static void put16(uint8_t *p, uint16_t v) { memcpy(p, &v, sizeof v); }

static void put_group(panel_kind k, int offset, const quant_group *g, float factor, int lane,
                      uint8_t *block) {
    put16(block + 2 * lane, f32_to_f16(g->scale[0] / factor));
    if (k == PANEL_W4Z)
        put16(block + 32 + 2 * lane, f32_to_f16((float)-g->zero));
    else if (has_second(k))
        put16(block + 32 + 2 * lane, f32_to_f16((k == PANEL_W6 ? g->scale[1] : g->min) / factor));
    uint8_t *q = block + (has_second(k) ? 64 : 32) + 4 * lane;
    for (int i = 0; i < GROUP; i++) {
        uint8_t code = (uint8_t)(g->code[i] + offset);
        if (!is_nibbles(k))
            q[i / 4 * 64 + i % 4] = code;
        else if (i < 16)
            q[i / 4 * 64 + i % 4] = code;
        else
            q[(i - 16) / 4 * 64 + i % 4] |= (uint8_t)(code << 4);
    }
}

static void pack_quantised(panel *p, int w8_offset, const weight_source *s, int64_t first) {
    uint8_t *data = (uint8_t *)p->data;
    size_t block = panel_block_bytes(p->kind);
    int offset = code_offset(p->kind, w8_offset);
    for (int lane = 0; lane < p->n_rows; lane++) {
        row_source r = source_row(s, first + lane);
        p->factor[lane] = row_factor(&r);
        for (int64_t g = 0; g < s->n_in / GROUP; g++) {
            quant_group q;
            quant_group_read(s->type, r.data, g, &q);
            put_group(p->kind, offset, &q, p->factor[lane], lane, data + (size_t)g * block);
        }
    }
}

static void pack_floats(panel *p, const weight_source *s, int64_t first) {
    size_t bytes = p->kind == PANEL_F32 ? 4 : 2;
    uint8_t *data = (uint8_t *)p->data;
    for (int lane = 0; lane < p->n_rows; lane++) {
        row_source r = source_row(s, first + lane);
        p->factor[lane] = 1;
        for (int64_t k = 0; k < s->n_in; k++)
            memcpy(data + ((size_t)k * PANEL_ROWS + (size_t)lane) * bytes,
                   r.data + (size_t)k * bytes, bytes);
    }
}

typedef struct pack_job {
    weight *w;
    const weight_source *parts;
    int n, w8_offset;
} pack_job;

static void pack_part(void *ctx, int part, int n_parts) {
    const pack_job *j = ctx;
    int from, to, index = 0;
    team_share(j->w->n_panels, 1, part, n_parts, &from, &to);
    for (int i = 0; i < j->n; i++)
        for (int64_t row = 0; row < j->parts[i].n_out; row += PANEL_ROWS, index++) {
            panel *p = &j->w->panels[index];
            if (index < from || index >= to)
                continue;
            if (is_float(p->kind))
                pack_floats(p, &j->parts[i], row);
            else
                pack_quantised(p, j->w8_offset, &j->parts[i], row);
        }
}

// Lays the panels out; data of a weight starts on a huge page where the kernel gives one.
static int allocate(weight *w, const weight_source *parts, int n, int w8_offset) {
    size_t bytes = 0;
    for (int i = 0; i < n; i++) {
        size_t panels = (size_t)((parts[i].n_out + PANEL_ROWS - 1) / PANEL_ROWS);
        w->n_panels += (int)panels;
        bytes += panels * panel_bytes(kind_of(parts[i].type), w->n_in);
    }
    w->panels = calloc((size_t)w->n_panels, sizeof *w->panels);
    w->data_bytes = bytes + PAD;
    w->data = mmap(NULL, w->data_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w->data == MAP_FAILED)
        w->data = NULL;
    if (!w->panels || !w->data)
        return -1;
    if (bytes >= HUGE)
        madvise(w->data, w->data_bytes, MADV_HUGEPAGE);
    panel *p = w->panels;
    uint8_t *data = w->data;
    int64_t row = 0;
    for (int i = 0; i < n; row += parts[i++].n_out) {
        panel_kind k = kind_of(parts[i].type);
        w->extras |= extras_of(k, w8_offset);
        w->quantised |= !is_float(k);
        for (int64_t r = 0; r < parts[i].n_out;
             r += PANEL_ROWS, p++, data += panel_bytes(k, w->n_in)) {
            int64_t left = parts[i].n_out - r;
            *p = (panel){.data = data,
                         .kind = k,
                         .row = (int)(row + r),
                         .n_rows = left < PANEL_ROWS ? (int)left : PANEL_ROWS};
        }
    }
    return 0;
}

// One gather of the activations serves all quantised parts, so their order must be the same.
static int take_order(weight *w, const weight_source *parts, int n, err *e) {
    size_t bytes = (size_t)w->n_in * sizeof *w->order;
    const weight_source *first = NULL;
    for (int i = 0; i < n; i++) {
        if (is_float(kind_of(parts[i].type)))
            continue;
        first = first ? first : &parts[i];
        const int32_t *a = first->order, *b = parts[i].order;
        if (!a != !b || (a && memcmp(a, b, bytes)))
            return err_set(e, ERR_UNSUPPORTED, parts[i].name,
                           "tensors %s and %s take their inputs in different orders", first->name,
                           parts[i].name);
    }
    if (!first || !first->order)
        return 0;
    w->order = malloc(bytes);
    if (!w->order)
        return err_set(e, ERR_INTERNAL, first->name, "no memory for tensor %s", first->name);
    memcpy(w->order, first->order, bytes);
    return 0;
}

int weight_pack_panels(team *t, const cpu_isa *isa, const weight_source *parts, int n, weight **out,
                       err *e) {
    int64_t n_out = 0;
    for (int i = 0; i < n; i++) {
        if (weight_source_check(&parts[i], parts[0].n_in, e))
            return -1;
        n_out += parts[i].n_out;
    }
    if (n_out > INT32_MAX - PANEL_ROWS || parts[0].n_in > INT32_MAX)
        return err_set(e, ERR_UNSUPPORTED, parts[0].name, "tensor %s is too large", parts[0].name);
    weight *w = calloc(1, sizeof *w);
    if (w)
        *w = (weight){.n_out = n_out, .n_in = parts[0].n_in};
    if (w && take_order(w, parts, n, e)) {
        weight_free_panels(w);
        return -1;
    }
    if (!w || allocate(w, parts, n, isa->w8_offset)) {
        weight_free_panels(w);
        return err_set(e, ERR_INTERNAL, parts[0].name, "no memory for tensor %s", parts[0].name);
    }
    pack_job j = {w, parts, n, isa->w8_offset};
    if (t)
        team_run(t, pack_part, &j);
    else
        pack_part(&j, 0, 1);
    *out = w;
    return 0;
}

void weight_free_panels(weight *w) {
    if (!w)
        return;
    if (w->data)
        munmap(w->data, w->data_bytes);
    free(w->panels);
    free(w->order);
    free(w);
}

static const panel *find_panel(const weight *w, int64_t row) {
    int low = 0, high = w->n_panels - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (w->panels[middle].row <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return &w->panels[low];
}

static float get16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return f16_to_f32(v);
}

static void read_group(const panel *p, int lane, int offset, const uint8_t *block, float scale,
                       float *y) {
    float s = get16(block + 2 * lane) * scale, second = 0;
    if (has_second(p->kind))
        second = get16(block + 32 + 2 * lane) * (p->kind == PANEL_W4Z ? s : scale);
    const uint8_t *q = block + (has_second(p->kind) ? 64 : 32) + 4 * lane;
    for (int i = 0; i < GROUP; i++) {
        int code;
        if (is_nibbles(p->kind))
            code = i < 16 ? q[i / 4 * 64 + i % 4] & 15 : q[(i - 16) / 4 * 64 + i % 4] >> 4;
        else
            code = p->kind == PANEL_W8 && !offset ? (int8_t)q[i / 4 * 64 + i % 4]
                                                  : q[i / 4 * 64 + i % 4];
        code -= offset;
        if (p->kind == PANEL_W6)
            y[i] = (float)code * (i < 16 ? s : second);
        else
            y[i] = (float)code * s + second;
    }
}

void weight_read_row(const weight *w, int w8_offset, int64_t row, float scale, float *y) {
    const panel *p = find_panel(w, row);
    int lane = (int)(row - p->row);
    size_t block = panel_block_bytes(p->kind);
    if (!is_float(p->kind)) {
        int offset = code_offset(p->kind, w8_offset);
        for (int64_t g = 0; g < w->n_in / GROUP; g++)
            read_group(p, lane, offset, p->data + (size_t)g * block, scale * p->factor[lane],
                       y + g * GROUP);
        return;
    }
    for (int64_t k = 0; k < w->n_in; k++) {
        const uint8_t *at = p->data + (size_t)k * block;
        float v = 0;
        if (p->kind == PANEL_F32)
            memcpy(&v, at + 4 * lane, sizeof v);
        else if (p->kind == PANEL_F16)
            v = get16(at + 2 * lane);
        else
            weight_dequantize(WT_BF16, at + 2 * lane, &v, 1);
        y[k] = v * scale;
    }
}

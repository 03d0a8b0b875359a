// The CPU backend: splits each operation over the team and calls the instruction set's functions.
// Owns the weights it packed, the team and memory for quantised activations, which grows to the
// largest call and stays. The engine thread is the only caller. Splits are static and never change
// a result; small operations stay on the calling thread, because waking the others costs more.
#include "kernels/cpu/cpu.h"
#include <stdlib.h>

enum {
    SMALL = 1 << 14,         // values of a row operation below which one thread does it
    SMALL_PRODUCT = 1 << 16, // multiplications
    COLUMNS = 64,            // columns of one unit of a large product: their activations stay in L2
    PANELS = 8,              // panels of one unit: read again for every ACT_WIDTH columns
};

void *cpu_grow(cpu *b, cpu_memory which, size_t bytes) {
    if (b->memory[which].bytes >= bytes)
        return b->memory[which].p;
    free(b->memory[which].p);
    bytes = (bytes + bytes / 4 + 63) / 64 * 64;
    b->memory[which].bytes = bytes;
    if (!(b->memory[which].p = aligned_alloc(64, bytes)))
        fatal("no memory: %zu bytes for a step of the CPU backend", bytes);
    return b->memory[which].p;
}

static void run(cpu *b, bool small, team_fn *fn, void *ctx) {
    if (small)
        fn(ctx, 0, 1);
    else
        team_run(b->team, fn, ctx);
}

static int cpu_weight_pack(ops *o, const weight_source *parts, int n, weight **out, err *e) {
    cpu *b = (cpu *)o;
    return weight_pack_panels(b->team, b->isa, parts, n, out, e);
}

static int cpu_weight_pack_alone(ops *o, const weight_source *parts, int n, weight **out, err *e) {
    return weight_pack_panels(NULL, ((cpu *)o)->isa, parts, n, out, e);
}

static void cpu_weight_free(ops *o, weight *w) {
    (void)o;
    weight_free_panels(w);
}

static size_t cpu_weight_bytes(const weight *w) {
    return sizeof *w + (size_t)w->n_panels * sizeof *w->panels + w->data_bytes;
}

// ---- matmul
typedef struct matmul_job {
    const cpu_isa *isa;
    const matmul_args *args;
    act act;
    float *gathered; // [team size, n_in]; NULL: activations are in order
    int group;       // panels of a unit
} matmul_job;

static void take(char **at, void *field, size_t bytes) {
    *(void **)field = *at;
    *at += (bytes + 63) / 64 * 64;
}

static void act_open(cpu *b, const weight *w, int n_rows, act *a) {
    a->n_groups = (int)(w->n_in / GROUP);
    a->width = n_rows < ACT_WIDTH ? n_rows : ACT_WIDTH;
    size_t columns = (size_t)(n_rows + a->width - 1) / (size_t)a->width * (size_t)a->width;
    size_t groups = columns * (size_t)a->n_groups;
    char *at =
        cpu_grow(b, CPU_ACT, groups * (GROUP + 4 * (EXTRA_KINDS + 2)) + 64 * (EXTRA_KINDS + 2));
    take(&at, &a->codes, groups * GROUP);
    take(&at, &a->scale, groups * sizeof *a->scale);
    for (int i = 0; i < EXTRA_KINDS; i++)
        if (w->extras >> i & 1)
            take(&at, &a->extra[i], groups * (i == EXTRA_32 ? 2 : 1) * sizeof *a->extra[i]);
}

static void quantize_part(void *ctx, int part, int n_parts) {
    const matmul_job *j = ctx;
    int from, to;
    team_share(j->args->n_rows, 1, part, n_parts, &from, &to);
    const weight *w = j->args->w;
    for (int r = from; r < to; r++) {
        const float *x = j->args->x + r * j->args->x_stride;
        if (w->order) {
            float *in_order = j->gathered + part * w->n_in;
            for (int64_t k = 0; k < w->n_in; k++)
                in_order[k] = x[w->order[k]];
            x = in_order;
        }
        j->isa->quantize_row(x, r, &j->act);
    }
}

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A unit is `group` panels times COLUMNS columns. Within it the activations of one tile stay in L1
// while the panels pass by.
static void matmul_unit(const matmul_job *j, int unit) {
    const matmul_args *a = j->args;
    int groups = ceil_div(a->w->n_panels, j->group), p0 = unit % groups * j->group,
        c0 = unit / groups * COLUMNS;
    int p1 = p0 + j->group < a->w->n_panels ? p0 + j->group : a->w->n_panels;
    int c1 = c0 + COLUMNS < a->n_rows ? c0 + COLUMNS : a->n_rows;
    for (int c = c0; c < c1; c += ACT_WIDTH)
        for (int p = p0; p < p1; p++)
            j->isa->matmul_panel(&a->w->panels[p], &j->act, a, c,
                                 c + ACT_WIDTH < c1 ? c + ACT_WIDTH : c1);
}

static void matmul_part(void *ctx, int part, int n_parts) {
    const matmul_job *j = ctx;
    int from, to;
    team_share(ceil_div(j->args->n_rows, COLUMNS) * ceil_div(j->args->w->n_panels, j->group), 1,
               part, n_parts, &from, &to);
    for (int unit = from; unit < to; unit++)
        matmul_unit(j, unit);
}

static void cpu_matmul(ops *o, const matmul_args *a) {
    cpu *b = (cpu *)o;
    const weight *w = a->w;
    if (a->n_rows < 1)
        return;
    matmul_job j = {.isa = b->isa, .args = a, .group = 1};
    if (w->quantised) {
        act_open(b, w, a->n_rows, &j.act);
        if (w->order)
            j.gathered = cpu_grow(b, CPU_GATHER,
                                  (size_t)team_size(b->team) * (size_t)w->n_in * sizeof(float));
        run(b, a->n_rows * w->n_in < 2 * SMALL, quantize_part, &j);
    }
    int columns = ceil_div(a->n_rows, COLUMNS);
    if (a->n_rows > ACT_WIDTH && w->n_panels * columns >= 4 * PANELS * team_size(b->team))
        j.group = PANELS;
    run(b, w->n_in * w->n_out * a->n_rows < SMALL_PRODUCT, matmul_part, &j);
}

// ---- rows
typedef struct row_job {
    const cpu *b;
    const void *args;
    int n_rows;
} row_job;

static void embed_part(void *ctx, int part, int n_parts) {
    const row_job *j = ctx;
    const embed_args *a = j->args;
    int from, to;
    team_share(a->n_rows, 1, part, n_parts, &from, &to);
    for (int r = from; r < to; r++)
        weight_read_row(a->table, j->b->isa->w8_offset, a->ids[r], a->scale,
                        a->y + r * a->table->n_in);
}

static void cpu_embed(ops *o, const embed_args *a) {
    row_job j = {.b = (cpu *)o, .args = a};
    run((cpu *)o, a->n_rows * a->table->n_in < SMALL, embed_part, &j);
}

static void rmsnorm_part(void *ctx, int part, int n_parts) {
    const row_job *j = ctx;
    const rmsnorm_args *a = j->args;
    int from, to;
    team_share(a->n_rows, 1, part, n_parts, &from, &to);
    for (int r = from; r < to; r++)
        j->b->isa->rmsnorm_row(a, r);
}

static void cpu_rmsnorm(ops *o, const rmsnorm_args *a) {
    row_job j = {.b = (cpu *)o, .args = a};
    run((cpu *)o, (int64_t)a->n_rows * a->dim < 2 * SMALL, rmsnorm_part, &j);
}

static void swiglu_part(void *ctx, int part, int n_parts) {
    const row_job *j = ctx;
    const swiglu_args *a = j->args;
    int from, to;
    team_share(a->n_rows, 1, part, n_parts, &from, &to);
    for (int r = from; r < to; r++)
        j->b->isa->swiglu_row(a, r);
}

static void cpu_swiglu(ops *o, const swiglu_args *a) {
    row_job j = {.b = (cpu *)o, .args = a};
    run((cpu *)o, (int64_t)a->n_rows * a->width < SMALL, swiglu_part, &j);
}

static void rope_part(void *ctx, int part, int n_parts) {
    const row_job *j = ctx;
    const rope_kv_args *a = j->args;
    int from, to, row = 0; // rows counted over all spans
    team_share(j->n_rows, 1, part, n_parts, &from, &to);
    for (int s = 0; s < a->n_spans; s++)
        for (int i = 0; i < a->spans[s].n_rows; i++, row++)
            if (row >= from && row < to)
                j->b->isa->rope_row(a, &a->spans[s], i);
}

static void cpu_rope_kv(ops *o, const rope_kv_args *a) {
    row_job j = {.b = (cpu *)o, .args = a};
    for (int s = 0; s < a->n_spans; s++)
        j.n_rows += a->spans[s].n_rows;
    run((cpu *)o, j.n_rows * (a->n_heads + 2 * a->kv->n_kv_heads) * a->kv->head_dim < SMALL,
        rope_part, &j);
}

static void cpu_parallel(ops *o, void (*fn)(void *, int, int), void *ctx) {
    team_run(((cpu *)o)->team, fn, ctx);
}

static void cpu_close(ops *o) {
    cpu *b = (cpu *)o;
    team_close(b->team);
    for (int i = 0; i < CPU_MEMORIES; i++)
        free(b->memory[i].p);
    free(b);
}

int cpu_open(const cpu_isa *isa, int n_threads, ops **out, err *e) {
    cpu *b = calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ERR_INTERNAL, NULL, "no memory for the backend");
    if (team_open(n_threads, &b->team, e)) {
        free(b);
        return -1;
    }
    b->isa = isa;
    b->ops = (ops){.name = isa->name,
                   .kv = KV_F16,
                   .weight_pack = cpu_weight_pack,
                   .weight_pack_alone = cpu_weight_pack_alone,
                   .weight_free = cpu_weight_free,
                   .weight_bytes = cpu_weight_bytes,
                   .embed = cpu_embed,
                   .rmsnorm = cpu_rmsnorm,
                   .matmul = cpu_matmul,
                   .rope_kv = cpu_rope_kv,
                   .attention = cpu_attention,
                   .swiglu = cpu_swiglu,
                   .parallel = cpu_parallel,
                   .close = cpu_close};
    *out = &b->ops;
    return 0;
}

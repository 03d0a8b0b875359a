// The CPU backend's inside: packed weights, quantised activations and the table of functions that
// each instruction set provides. cpu.c splits the work over threads and owns the memory; pack.c
// repacks; avx2*.c and avx512*.c compute and nothing else. All integer results are the same bits on
// both, and so are the floats: both follow the same order of operations.
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H
#include "kernels/ops.h"
#include "kernels/team.h"

// For loops over registers.
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

enum {
    PANEL_ROWS = 16, // rows of a panel: the lanes of one 512-bit or two 256-bit registers
    GROUP = 32,      // values that share a scale, of weights and of activations
    ACT_WIDTH = 16,  // most columns that stand side by side in act
    CHUNK =
        512, // keys whose attention is summed apart, so that chunks may run on different threads
};

// Blocks of 16 rows x 32 values. Each starts with fp16 scale[16]; W4M and W5M have fp16 min[16]
// behind it, W4Z fp16 minus the zero, a whole number, W6 the scale of the second half. Then the
// codes: W4: [4][16][4] bytes, byte (g, row, j) holds value 4 g + j in its low and 16 + 4 g + j in
// its high nibble; W5, W6, W8: [8][16][4] bytes. Float kinds: [n_in][16] elements.
typedef enum panel_kind {
    PANEL_W4,  // Q4_0: code - 8
    PANEL_W4M, // Q4_1, Q4_K
    PANEL_W4Z, // INT4: code - zero
    PANEL_W5,  // Q5_0: code - 16
    PANEL_W5M, // Q5_1, Q5_K
    PANEL_W6,  // Q6_K: code - 32
    PANEL_W8,  // Q8_0: signed, or code - 128 where the instruction set multiplies unsigned bytes
               // (cpu_isa.w8_offset)
    PANEL_F16,
    PANEL_BF16,
    PANEL_F32,
    PANEL_KINDS
} panel_kind;

typedef struct panel {
    float factor[PANEL_ROWS]; // power of two that every scale and min of the row is multiplied by
    const uint8_t *data;
    panel_kind kind;
    int row, n_rows; // outputs row .. row + n_rows - 1; the rest of the 16 are zeros
} panel;

struct weight {
    int64_t n_out, n_in;
    int n_panels;
    unsigned extras; // bit per act_extra that the panels need
    bool quantised;  // any panel wants int8 activations
    int32_t
        *order; // [n_in]: value k of the quantised panels multiplies x[order[k]]; NULL: in order
    panel *panels;
    uint8_t *data;
    size_t data_bytes;
};

// What a kind needs of an activation group besides codes and scale, one 32-bit word each.
typedef enum act_extra {
    EXTRA_SUM, // float: scale * sum of codes
    EXTRA_8,   // int32: -8 * sum of codes, where the integer sum starts
    EXTRA_16,  // -16 * sum
    EXTRA_128, // -128 * sum
    EXTRA_32,  // -32 * sum of each half: two words
    EXTRA_KINDS
} act_extra;

// Columns (rows of x) as int8 with a float scale per group. `width` columns stand side by side:
// column c is number c % width of tile c / width; codes [tile][group][width][32], scale
// [tile][group][width], extra the same (EXTRA_32: two words).
typedef struct act {
    int n_groups, width;
    int8_t *codes;
    float *scale;
    int32_t *extra[EXTRA_KINDS]; // NULL where not needed
} act;

typedef struct attention_item { // query rows of one span that share a KV head
    const attention_args *args;
    const seq_span *span;
    int kv_head, first_row, n_rows; // rows counted within the span
    int first_chunk, last_chunk;    // of CHUNK keys
    float *partial;                 // NULL: finish and write y; else leave the sums here
} attention_item;

typedef struct cpu_isa {
    const char *name;
    int w8_offset; // what pack.c adds to W8 codes
    void (*quantize_row)(const float *x, int column, const act *a);
    // Columns from .. to - 1 of the panel's outputs, n_groups of a.
    void (*matmul_panel)(const panel *p, const act *a, const matmul_args *m, int from, int to);
    void (*rmsnorm_row)(const rmsnorm_args *a, int row);
    void (*swiglu_row)(const swiglu_args *a, int row);
    void (*rope_row)(const rope_kv_args *a, const seq_span *s, int i);
    void (*attend)(const attention_item *it, float *scratch);
    // Merges the partials of the item's chunks, one of each in a row at it->partial, and writes y.
    void (*attend_merge)(const attention_item *it, float *scratch);
} cpu_isa;

extern const cpu_isa cpu_isa_avx2, cpu_isa_avx512;

enum {
    ATTENTION_QUERIES = 96, // most queries (rows x heads) of an item
    ATTENTION_KEYS = 64,    // keys of a block
};

// head_dim rounded up to what a tile takes at once.
static inline size_t attention_width(int head_dim) { return (size_t)(head_dim + 63) / 64 * 64; }
// Floats of one partial of n queries, and of the scratch memory of attend and attend_merge: whole
// cache lines.
static inline size_t attention_partial_floats(int n, int head_dim) {
    return (size_t)n * (attention_width(head_dim) + 16) + (size_t)(n + 15) / 16 * 16;
}
static inline size_t attention_scratch_floats(int head_dim) {
    size_t d = attention_width(head_dim);
    return 2 * attention_partial_floats(ATTENTION_QUERIES, head_dim) + ATTENTION_QUERIES * d +
           2 * ATTENTION_KEYS * d + (ATTENTION_QUERIES + 2) * ATTENTION_KEYS;
}

typedef enum cpu_memory {
    CPU_ACT,
    CPU_SCRATCH,
    CPU_ITEMS,
    CPU_PARTIALS,
    CPU_GATHER,
    CPU_MEMORIES
} cpu_memory;

// The backend: ops first, so that an ops pointer is a cpu pointer. Memory only grows, so a step
// that has been seen allocates nothing.
typedef struct cpu {
    ops ops;
    const cpu_isa *isa;
    team *team;
    struct {
        void *p;
        size_t bytes;
    } memory[CPU_MEMORIES];
} cpu;

void *cpu_grow(cpu *b, cpu_memory which, size_t bytes); // contents are lost; fatal without memory
void cpu_attention(ops *o, const attention_args *a);

// Opens the backend on one instruction set; the caller has checked that the processor has it.
int cpu_open(const cpu_isa *isa, int n_threads, ops **out, err *e);

// pack.c. Splits over the team; NULL: the calling thread does it all.
int weight_pack_panels(team *t, const cpu_isa *isa, const weight_source *parts, int n, weight **out,
                       err *e);
void weight_free_panels(weight *w);
void weight_read_row(const weight *w, int w8_offset, int64_t row, float scale, float *y);
size_t panel_block_bytes(panel_kind k); // per 32 values, or per value for float kinds

#endif

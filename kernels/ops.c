// Chooses the backend: by name, by TIERGATE_CPU, or the best this processor has. Owns nothing.
// Knows which instruction sets each backend needs and whether the operating system saves their
// registers; the backends never ask.
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include <cpuid.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct backend {
    const char *name;
    bool (*supported)(void);
    const char *needs; // for the error
    int (*open)(int n_threads, ops **out, err *e);
} backend;

static bool always(void) { return true; }

// Register state that the operating system saves (Intel SDM volume 1, 13.3).
enum { STATE_AVX = 0x06, STATE_AVX512 = 0xe6 };

static uint32_t saved_state(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static bool has_all(uint32_t flags, uint32_t wanted) { return (flags & wanted) == wanted; }

static bool has_avx2(void) {
    uint32_t a, b, c, d;
    if (!has_all(saved_state(), STATE_AVX) || !__get_cpuid(1, &a, &b, &c, &d) ||
        !has_all(c, bit_AVX | bit_FMA | bit_F16C))
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && has_all(b, bit_AVX2 | bit_BMI | bit_BMI2);
}

static bool has_avx512(void) {
    uint32_t a, b, c, d;
    return has_avx2() && has_all(saved_state(), STATE_AVX512) &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           has_all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
           has_all(c, bit_AVX512VNNI);
}

static int open_avx2(int n_threads, ops **out, err *e) {
    return cpu_open(&cpu_isa_avx2, n_threads, out, e);
}

static int open_avx512(int n_threads, ops **out, err *e) {
    return cpu_open(&cpu_isa_avx512, n_threads, out, e);
}

// The best first.
static const backend backends[] = {
    {"avx512", has_avx512, "AVX-512 F, BW, VL, DQ and VNNI", open_avx512},
    {"avx2", has_avx2, "AVX2, FMA and F16C", open_avx2},
    {"ref", always, "nothing", ref_open},
};

static const backend *find(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++)
        if (strcmp(backends[i].name, name) == 0)
            return &backends[i];
    return NULL;
}

static const backend *best(void) {
    const backend *b = backends;
    while (!b->supported())
        b++;
    return b;
}

bool ops_supported(const char *name) {
    const backend *b = find(name);
    return b && b->supported();
}

kv_type ops_kv_type(const ops *o) { return o->kv; }

static const char *const kv_names[KV_TYPES] = {
    [KV_F32] = "f32", [KV_F16] = "f16", [KV_BF16] = "bf16", [KV_Q8] = "q8"};

const char *kv_type_name(kv_type t) { return kv_names[t]; }

bool kv_type_find(const char *name, kv_type *out) {
    for (int i = 0; i < KV_TYPES; i++)
        if (strcmp(kv_names[i], name) == 0) {
            *out = (kv_type)i;
            return true;
        }
    return false;
}

size_t kv_plane_bytes(kv_type t, int page_tokens, int head_dim) {
    size_t vector =
        t == KV_Q8 ? (size_t)head_dim + sizeof(uint16_t) : (size_t)head_dim * (t == KV_F32 ? 4 : 2);
    return vector * (size_t)page_tokens;
}

int ops_open(const char *name, int n_threads, ops **out, err *e) {
    const char *field = "backend";
    if (!name || !*name) {
        name = getenv("TIERGATE_CPU");
        field = "TIERGATE_CPU";
    }
    const backend *b = name && *name ? find(name) : best();
    if (!b)
        return err_set(e, ERR_INVALID, field, "%s: \"%s\" is none of ref, avx2, avx512", field,
                       name);
    if (!b->supported())
        return err_set(e, ERR_UNSUPPORTED, field, "backend %s needs a processor with %s", b->name,
                       b->needs);
    return b->open(n_threads, out, e);
}

typedef struct pin_job {
    cpu_set_t may; // the processors of this process
    atomic_int n_failed;
} pin_job;

static void pin_part(void *ctx, int part, int n_parts) {
    pin_job *j = ctx;
    cpu_set_t own;
    size_t at = 0;
    (void)n_parts;
    if (part == 0)
        return;
    for (int left = part; left || !CPU_ISSET(at, &j->may); at++)
        left -= CPU_ISSET(at, &j->may) != 0;
    CPU_ZERO(&own);
    CPU_SET(at, &own);
    atomic_fetch_add(&j->n_failed, sched_setaffinity(0, sizeof own, &own) != 0);
}

static void count_parts(void *ctx, int part, int n_parts) {
    if (part == 0)
        *(int *)ctx = n_parts;
}

int ops_pin(ops *o, err *e) {
    pin_job j = {.n_failed = 0};
    int n = 0;
    o->parallel(o, count_parts, &n);
    int have = sched_getaffinity(0, sizeof j.may, &j.may) ? 0 : CPU_COUNT(&j.may);
    if (have < n)
        return err_set(e, ERR_INVALID, "pin", "pin: %d threads on %d processors", n, have);
    o->parallel(o, pin_part, &j);
    if (atomic_load(&j.n_failed))
        return err_set(e, ERR_INTERNAL, "pin", "pin: threads cannot be kept on processors");
    return 0;
}

// The reference backend: every operation in double precision, in the simplest loops that still
// finish. It defines what the other backends must compute. Owns dequantised copies of the weights
// (float) and a team that splits rows or outputs; the engine thread calls it. Not meant for
// serving.
#include "kernels/ref/ref.h"
#include "kernels/backend.h"
#include "kernels/dequant.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct weight {
    int64_t n_out, n_in;
    float values[]; // [n_out, n_in], and a row of scratch memory
};

// Puts value k of a row where the input that it multiplies stands.
static void restore_order(const int32_t *order, float *row, float *scratch, int64_t n_in) {
    memcpy(scratch, row, (size_t)n_in * sizeof *row);
    for (int64_t k = 0; k < n_in; k++)
        row[order[k]] = scratch[k];
}

static int ref_weight_pack(ops *o, const weight_source *parts, int n, weight **out, err *e) {
    (void)o;
    int64_t n_out = 0, n_in = parts[0].n_in;
    for (int i = 0; i < n; i++) {
        if (weight_source_check(&parts[i], n_in, e))
            return -1;
        n_out += parts[i].n_out;
    }
    weight *w = malloc(sizeof *w + (size_t)((n_out + 1) * n_in) * sizeof(float));
    if (!w)
        return err_set(e, ERR_INTERNAL, parts[0].name, "no memory for tensor %s", parts[0].name);
    w->n_out = n_out;
    w->n_in = n_in;
    float *to = w->values;
    for (int i = 0; i < n; i++) {
        int n_values = 1, n_bytes = 0;
        weight_type_block(parts[i].type, &n_values, &n_bytes);
        for (int64_t r = 0; r < parts[i].n_out; r++, to += n_in) {
            weight_dequantize(parts[i].type,
                              (const char *)parts[i].data + r * (n_in / n_values) * n_bytes, to,
                              n_in);
            if (parts[i].order)
                restore_order(parts[i].order, to, w->values + n_out * n_in, n_in);
        }
    }
    *out = w;
    return 0;
}

static void ref_weight_free(ops *o, weight *w) {
    (void)o;
    free(w);
}

static size_t ref_weight_bytes(const weight *w) {
    return sizeof *w + (size_t)(w->n_out * w->n_in) * sizeof(float);
}

static void ref_embed(ops *o, const embed_args *a) {
    (void)o;
    int64_t dim = a->table->n_in;
    for (int r = 0; r < a->n_rows; r++)
        for (int64_t i = 0; i < dim; i++)
            a->y[r * dim + i] = a->table->values[a->ids[r] * dim + i] * a->scale;
}

void ref_norm_row(const float *x, const float *gain, float *y, int dim, double eps) {
    double sum = 0;
    for (int i = 0; i < dim; i++)
        sum += (double)x[i] * x[i];
    double inverse = 1 / sqrt(sum / dim + eps);
    for (int i = 0; i < dim; i++)
        y[i] = (float)(x[i] * inverse * gain[i]);
}

static void ref_rmsnorm(ops *o, const rmsnorm_args *a) {
    (void)o;
    for (int r = 0; r < a->n_rows; r++) {
        float *x = a->x + (size_t)r * (size_t)a->dim;
        for (int i = 0; a->add && i < a->dim; i++)
            x[i] += a->add[(size_t)r * (size_t)a->dim + (size_t)i];
        ref_norm_row(x, a->gain, a->y + (size_t)r * (size_t)a->dim, a->dim, a->eps);
    }
}

// Eight independent sums, so that the additions need not wait for each other.
static double dot(const float *a, const float *b, int64_t n) {
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            s[j] += (double)a[i + j] * b[i + j];
    for (; i < n; i++)
        s[0] += (double)a[i] * b[i];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static void matmul_part(void *ctx, int part, int n_parts) {
    const matmul_args *a = ctx;
    int from, to;
    team_share((int)a->w->n_out, 1, part, n_parts, &from, &to);
    for (int j = from; j < to; j++)
        for (int r = 0; r < a->n_rows; r++) {
            double y = dot(a->w->values + j * a->w->n_in, a->x + r * a->x_stride, a->w->n_in);
            a->y[r * a->y_stride + j] = (float)(a->bias ? y + a->bias[j] : y);
        }
}

static void ref_matmul(ops *o, const matmul_args *a) {
    team_run(((ref *)o)->team, matmul_part, (void *)a);
}

static void ref_swiglu(ops *o, const swiglu_args *a) {
    (void)o;
    for (int r = 0; r < a->n_rows; r++)
        for (int i = 0; i < a->width; i++) {
            const float *g = a->gate_up + (size_t)r * 2 * (size_t)a->width + i;
            a->y[(size_t)r * (size_t)a->width + (size_t)i] =
                (float)(g[0] / (1 + exp(-(double)g[0])) * g[a->width]);
        }
}

static void ref_parallel(ops *o, void (*fn)(void *, int, int), void *ctx) {
    team_run(((ref *)o)->team, fn, ctx);
}

static void ref_close(ops *o) {
    ref *r = (ref *)o;
    team_close(r->team);
    free(r);
}

int ref_open(int n_threads, ops **out, err *e) {
    ref *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, ERR_INTERNAL, NULL, "no memory for the backend");
    if (team_open(n_threads, &r->team, e)) {
        free(r);
        return -1;
    }
    r->ops = (ops){.name = "ref",
                   .kv = KV_F32,
                   .weight_pack = ref_weight_pack,
                   .weight_pack_alone = ref_weight_pack,
                   .weight_free = ref_weight_free,
                   .weight_bytes = ref_weight_bytes,
                   .embed = ref_embed,
                   .rmsnorm = ref_rmsnorm,
                   .matmul = ref_matmul,
                   .rope_kv = ref_rope_kv,
                   .attention = ref_attention,
                   .swiglu = ref_swiglu,
                   .parallel = ref_parallel,
                   .close = ref_close};
    *out = &r->ops;
    return 0;
}

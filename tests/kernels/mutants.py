"""Planted bugs in the CPU kernels: do their tests see them? `make kernels-mutants`: each is built apart, in a copy of the tree.

    mutants.py [NAME...]      one line each, then "N passed, N failed, N skipped"; passed: the test named fails
"""
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from planted import Tree  # noqa: E402

AVX512, AVX2, PANEL, PACK = (f"kernels/cpu/{name}" for name in ("avx512_gemm.c", "avx2_gemm.c", "panel_v16.h", "pack.c"))
ROWS, ATTENTION, INDEX = "kernels/cpu/rows_v16.h", "kernels/cpu/attention_v16.h", "kernels/kv_index.h"
# name, test that must fail, file, old, new
PLANTS = [
    ("offset-forgotten", "matmul", AVX512, "min ? NULL : extra + c, d + c, scale,", "NULL, d + c, scale,"),
    ("upper-nibble-shift", "matmul", AVX512, "_mm512_srli_epi16(x, 4)", "_mm512_srli_epi16(x, 3)"),
    ("second-scale", "matmul", AVX512, "extra + width + c, d + c, second,", "extra + width + c, d + c, scale,"),
    ("extras-of-one-half", "matmul", AVX512, "extra += halves ? 2 * width : width;", "extra += width;"),
    ("minimum-by-scale", "matmul", AVX512, "_mm512_set1_ps(((const float *)extra)[c]), second, sum[c]", "_mm512_set1_ps(((const float *)extra)[c]), scale, sum[c]"),
    ("bits-by-columns", "matmul", AVX512, "sum[c] = _mm512_fmadd_ps(v, scale, sum[c]);",
     "sum[c] = n == 1 ? _mm512_add_ps(_mm512_mul_ps(v, scale), sum[c]) : _mm512_fmadd_ps(v, scale, sum[c]);"),
    ("int16-overflow", "matmul", AVX2, "unsigned_steps(false, n, 0, 4, p + head, x, sums);\n                unsigned_steps(false, n, 4, 4, p + head, x, sums);",
     "unsigned_steps(false, n, 0, 8, p + head, x, sums);"),
    ("int16-overflow-6-bit", "matmul", AVX2, "unsigned_steps(false, n, 4 * half, 2, p + 64, x, sums);\n        unsigned_steps(false, n, 4 * half + 2, 2, p + 64, x, sums);",
     "unsigned_steps(false, n, 4 * half, 4, p + 64, x, sums);"),
    ("sign-forgotten", "matmul", AVX2, "_mm256_sign_epi8(y, w[h])", "y"),
    ("half-of-the-rows", "matmul", AVX2, "__m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), _mm256_broadcast_ss(d + i / 2));",
     "__m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), _mm256_broadcast_ss(d + i));"),
    ("last-panel-too-wide", "matmul", PANEL, "if (p->n_rows == PANEL_ROWS)", "if (p->n_rows)"),
    ("bias-forgotten", "matmul", PANEL, "if (m->bias)", "if (m->bias && !p->row)"),
    ("column-of-another-tile", "matmul", PANEL, "size_t within = (size_t)(c % a->width)", "size_t within = (size_t)(c % a->width & ~7)"),
    ("nibbles-swapped", "matmul", PACK, "q[(i - 16) / 4 * 64 + i % 4] |= (uint8_t)(code << 4);", "q[(i - 16) / 4 * 64 + (i % 4 ^ 1)] |= (uint8_t)(code << 4);"),
    ("stacked-row", "matmul", PACK, ".row = (int)(row + r)", ".row = (int)r"),
    ("row-factor", "matmul", PACK, "f32_to_f16((k == PANEL_W6 ? g->scale[1] : g->min) / factor)", "f32_to_f16(k == PANEL_W6 ? g->scale[1] : g->min)"),
    ("codes-truncated", "matmul", ROWS, "v16 inverse = v16_set1(tiny ? 0 : 127 / largest);", "v16 inverse = v16_set1(tiny ? 0 : 126.5f / largest);"),
    ("sum-of-one-half", "matmul", ROWS, "int32_t sum = half_sum[0] + half_sum[1];", "int32_t sum = 2 * half_sum[0];"),
    ("epsilon-outside", "rows", ROWS, "sqrtf(v16_sum(v16_add(sum[0], sum[1])) / (float)dim + eps)", "(sqrtf(v16_sum(v16_add(sum[0], sum[1])) / (float)dim) + eps)"),
    ("sum-not-kept", "rows", ROWS, "v16_store_n(x + i, v, n);", ""),
    ("exponential-short", "rows", ROWS, "p = v16_fma(p, r, v16_set1(8.3334519073e-3f));", ""),
    ("position-of-the-first", "attention", ROWS, "int position = s->first + i, dim", "int position = s->first, dim"),
    ("rotation-order", "attention", ROWS, "head[2 * i + 1] = x * sine[i] + y * cosine[i];", "head[2 * i + 1] = y * sine[i] + x * cosine[i];"),
    ("key-without-norm", "attention", ROWS, "h < a->n_heads ? a->q_gain : a->k_gain", "h < a->n_heads ? a->q_gain : NULL"),
    ("one-key-of-the-future", "attention", ATTENTION, "int visible = w->position[i] + 1 - b->key;", "int visible = w->position[i] + 2 - b->key;"),
    ("mask-forgotten", "attention", ATTENTION, "soften(w, s, i, visible, true, NULL);", "soften(w, s, i, visible, false, NULL);"),
    ("old-weights-kept", "attention", ATTENTION, "total = v16_mul(total, shrink);", ""),
    ("old-values-kept", "attention", ATTENTION, "v16_store(value + d, v16_mul(v16_load(value + d), shrink));", "v16_store(value + d, v16_load(value + d));"),
    ("base-of-the-first-chunk", "attention", ATTENTION, "total->base[i] = largest;", ""),
    ("tile-of-the-last-query", "attention", ATTENTION, "seen = w->position[i + n - 1] + 1 - key;", "seen = w->position[i] + 1 - key;"),
    ("keys-scale-for-values", "attention", ATTENTION, "v16_load(scale + KEYS + 16 * k)", "v16_load(scale + 16 * k)"),
    ("page-of-another-sequence", "attention", INDEX, "s->pages[position / kv->page_tokens]", "s->pages[(position - 1) / kv->page_tokens]"),
]


def try_out(tree, test, edit):
    with tree.planted([edit]):
        tree.make(f"build/unit/kernels/{test}_test")
        run = subprocess.run([tree.path / f"build/unit/kernels/{test}_test"], cwd=tree.path, capture_output=True, text=True, errors="replace")
    lost = [line.split("]")[1].strip() for line in (run.stdout + run.stderr).splitlines() if line.startswith("[  FAILED  ]") and "test(s)" not in line]
    if run.returncode and lost:
        return True, ", ".join(dict.fromkeys(lost))
    return (True, f"ended by signal {-run.returncode}") if run.returncode < 0 else (False, "not seen")


def main():
    passed = failed = skipped = 0
    has_avx512 = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
    tree = Tree("kernels", with_tests=True)
    for name, test, *edit in PLANTS:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        if edit[0] == AVX512 and not has_avx512:
            skipped += 1
            print(f"{name:24} skip: no AVX-512 here")
            continue
        try:
            seen, text = try_out(tree, test, edit)
        except RuntimeError as e:
            seen, text = False, str(e)
        passed, failed = passed + seen, failed + (not seen)
        print(f"{name:24} {'caught' if seen else 'FAILED'} {text[:200]}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(main())

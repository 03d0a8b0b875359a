# Per-file flags of the kernels. Only files named here may hold instructions beyond the x86-64 baseline; they are reached after a CPUID check.
# Contraction is off everywhere: a row's bits must not depend on how the compiler fuses a loop.
# clang takes minutes to instrument the unrolled tiles for fuzzing, and no fuzz target reaches them.
KERNEL_FLAGS := -O3 -ffp-contract=off $(if $(filter fuzz,$(MODE)),-fno-sanitize=all)
CFLAGS_FILE_kernels_ref_ref := $(KERNEL_FLAGS)
CFLAGS_FILE_kernels_ref_ref_attention := $(KERNEL_FLAGS)
CFLAGS_FILE_kernels_dequant := $(KERNEL_FLAGS)
AVX2_FLAGS := $(KERNEL_FLAGS) -march=x86-64-v3
AVX512_FLAGS := $(AVX2_FLAGS) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
CFLAGS_FILE_kernels_cpu_avx2 := $(AVX2_FLAGS)
CFLAGS_FILE_kernels_cpu_avx2_gemm := $(AVX2_FLAGS)
CFLAGS_FILE_kernels_cpu_avx512 := $(AVX512_FLAGS)
CFLAGS_FILE_kernels_cpu_avx512_gemm := $(AVX512_FLAGS)
CFLAGS_FILE_kernels_cpu_pack := $(KERNEL_FLAGS)

# ---- The AVX-512 sources compiled for AVX2 through SIMDe, so that every machine tests them: the tests below, linked with those objects in
# front of kernels.a. tests/unit/kernels/emulated_test.c runs them. clang-14 compiles SIMDe four times as fast as gcc.
EMULATED_SRC := kernels/cpu/avx512.c kernels/cpu/avx512_gemm.c
EMULATED_TESTS := matmul_test attention_test rows_test
EMULATED_FLAGS := -O2 -g -ffp-contract=off -march=x86-64-v3 -DSIMDE_ENABLE_NATIVE_ALIASES -include tests/kernels/simde_shim.h -Wno-psabi
EMULATED_OBJ := $(patsubst %.c,$(B)/emulated/%.o,$(EMULATED_SRC))
HAS_SIMDE := $(and $(wildcard /usr/include/simde/x86/avx512.h),$(wildcard /usr/bin/clang-14))
EMULATED_BIN := $(if $(HAS_SIMDE),$(patsubst %,$(B)/emulated/%,$(EMULATED_TESTS)))

$(B)/emulated/kernels/%.o: kernels/%.c tests/kernels/simde_shim.h
	@mkdir -p $(@D)
	$(call say,CC,$< (emulated))
	$(Q)clang-14 $(CPPFLAGS) -std=c11 -pthread -fPIE $(WARN) $(EMULATED_FLAGS) -c $< -o $@

$(EMULATED_BIN): $(B)/emulated/%: tests/unit/kernels/%.c $(EMULATED_OBJ) $(B)/lib/kernels.a $(B)/lib/base.a
	@mkdir -p $(@D)
	$(call say,CC,$< (emulated))
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -DKERNELS_EMULATED $< $(EMULATED_OBJ) $(LDFLAGS) $(B)/lib/kernels.a $(B)/lib/base.a -lcmocka $(LDLIBS) -o $@

$(B)/unit/kernels/emulated_test: $(EMULATED_BIN)

.PHONY: kernels-simde
kernels-simde: $(EMULATED_BIN) ## run the kernel tests on the AVX-512 sources emulated with AVX2
	@tools/run_tests.sh $(EMULATED_BIN)

$(B)/bench/kernels_bench: tests/bench/kernels_bench.c $(B)/obj/tests/bench/limits.o $(B)/lib/kernels.a $(B)/lib/base.a
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(filter %.c %.o,$^) $(LDFLAGS) $(B)/lib/kernels.a $(B)/lib/base.a $(LDLIBS) -o $@

.PHONY: bench-kernels
bench-kernels: $(B)/bench/kernels_bench ## the CPU kernels beside the machine's limits, and the sum of a step: make bench-kernels THREADS=2 PART=steps
	@$< $(or $(THREADS),1) $(PART)

.PHONY: kernels-mutants
kernels-mutants: ## planted bugs in the CPU kernels, each of which a test must see (MUTANTS="NAME ...")
	@env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) tests/kernels/mutants.py $(MUTANTS)

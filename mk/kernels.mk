# Per-file flags of the kernels. Only files named here may hold instructions beyond the x86-64 baseline; they are reached after a CPUID check.
# Contraction is off everywhere: a row's bits must not depend on how the compiler fuses a loop.
KERNEL_FLAGS := -O3 -ffp-contract=off
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

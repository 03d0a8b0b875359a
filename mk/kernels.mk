# Per-file flags of the kernels. Only files named here may hold instructions beyond the x86-64 baseline; they are reached after a CPUID check.
# Contraction is off everywhere: a row's bits must not depend on how the compiler fuses a loop.
KERNEL_FLAGS := -O3 -ffp-contract=off
CFLAGS_FILE_kernels_ref_ref := $(KERNEL_FLAGS)
CFLAGS_FILE_kernels_ref_ref_attention := $(KERNEL_FLAGS)
CFLAGS_FILE_kernels_dequant := $(KERNEL_FLAGS)

# The sampler's loops over the vocabulary vectorise at -O3; no fused multiply-add, so that weights are
# the same integers on every machine.
CFLAGS_FILE_engine_sample := -O3 -ffp-contract=off
CFLAGS_FILE_engine_sample_select := -O3 -ffp-contract=off

# The sampler's loops over the vocabulary vectorise at -O3; no fused multiply-add, so that weights are
# the same integers on every machine.
CFLAGS_FILE_engine_sample := -O3 -ffp-contract=off
CFLAGS_FILE_engine_sample_select := -O3 -ffp-contract=off

# What the engine's tests share: a writer of GGUF files, tiny models with random weights, the oracle's goldens.
ENGINE_TEST_OBJ := $(patsubst %,$(B)/obj/tests/support/%.o,gguf_builder gguf_as_f32 hf_vocabulary hf_writer tiny_model tiny_lora golden)
ENGINE_LIBS := $(patsubst %,$(B)/lib/%.a,engine kernels model base)
$(B)/lib/engine_tests.a: $(ENGINE_TEST_OBJ)
	@mkdir -p $(@D)
	@rm -f $@
	@ar rcsD $@ $^
$(patsubst tests/unit/%.c,$(B)/unit/%,$(wildcard tests/unit/engine/*_test.c)): $(B)/lib/engine_tests.a
$(B)/tests/tiny_models: $(B)/obj/tests/support/tiny_models.o $(B)/lib/engine_tests.a $(ENGINE_LIBS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@
$(B)/bench/engine_bench: $(B)/obj/tests/bench/engine_bench.o $(ENGINE_LIBS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@

.PHONY: bench-engine
bench-engine: $(B)/bench/engine_bench model-file ## tokens a second of the engine on the small real model (BACKEND=...)
	$(B)/bench/engine_bench $(TIERGATE_TEST_MODEL) $(BACKEND)

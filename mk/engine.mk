# The sampler's loops over the vocabulary vectorise at -O3 where a comparison need not trap; no fused multiply-add, so that weights
# are the same integers on every machine.
CFLAGS_FILE_engine_sample := -O3 -ffp-contract=off -fno-trapping-math
CFLAGS_FILE_engine_sample_select := -O3 -ffp-contract=off -fno-trapping-math

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
$(B)/bench/engine_bench: $(B)/obj/tests/bench/engine_bench.o $(B)/obj/tests/bench/limits.o $(ENGINE_LIBS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@
$(B)/bench/sample_bench: $(B)/obj/tests/bench/sample_bench.o $(ENGINE_LIBS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@

.PHONY: bench-engine bench-sample
bench-sample: $(B)/bench/sample_bench ## us per token of the sampler, by vocabulary and parameters (THREADS=1)
	$(B)/bench/sample_bench $(THREADS)
bench-engine: $(B)/bench/engine_bench model-file ## tokens a second of the engine on the small real model (BACKEND=...)
	$(B)/bench/engine_bench $(TIERGATE_TEST_MODEL) $(BACKEND)

.PHONY: bench-kv
bench-kv: $(B)/bench/engine_bench model-file ## the types of the KV cache behind 4,096 positions, in turns (BENCH="--rounds 3 --backends avx2")
	python3 tests/bench/kv_types.py $(B)/bench/engine_bench $(TIERGATE_TEST_MODEL) $(BENCH)

# Beside llama.cpp, which is built from source once (some minutes) in the benchmark's own virtual environment: for this machine, and where that
# has AVX-512 once more without, so that each of our paths has its peer (pip would take the first build from its cache). Models of real
# shapes with random weights are written once.
# BENCH_SMOKE=1: the small model, two alternations. BENCH_7B=1: a model of 7B too (10 GB of memory).
BENCH_VENV := build/bench/venv
BENCH_THREADS ?= 2
$(BENCH_VENV)/installed: tests/bench/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" nice -n 19 \
	    $(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-cache-dir --no-binary llama-cpp-python -r $<
	@touch $@
PEER_AVX2 := $(BENCH_VENV)/avx2
$(PEER_AVX2)/installed: $(BENCH_VENV)/installed
	CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) CMAKE_ARGS="-DGGML_NATIVE=OFF $(patsubst %,-DGGML_%=ON,SSE42 AVX AVX2 FMA F16C BMI2) -DLLAVA_BUILD=OFF" nice -n 19 \
	    $(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-cache-dir --upgrade --no-deps --target $(@D) --no-binary llama-cpp-python \
	    $$(grep -o 'llama-cpp-python.*==.*' tests/bench/requirements.txt | sed 's/\[server\]//')
	@touch $@

.PHONY: bench-cpu
bench-cpu: $(B)/bench/engine_bench $(B)/bench/kernels_bench model-file vocab-file ## the engine beside llama.cpp on the same models, in turns (BENCH_SMOKE=1, BENCH_7B=1)
	-@$(MAKE) --no-print-directory $(BENCH_VENV)/installed $(if $(shell grep -m1 avx512f /proc/cpuinfo),$(PEER_AVX2)/installed)
	@python=$(BENCH_VENV)/bin/python; [ -f $(BENCH_VENV)/installed ] || { echo "skip: llama-cpp-python cannot be installed here"; python=$(PYTHON); }; \
	$$python tests/bench/bench_cpu.py --build $(B)/bench --models $(MODEL_DIR) --threads $(BENCH_THREADS) --peer-avx2 $(PEER_AVX2) $(if $(BENCH_SMOKE),--smoke) $(if $(BENCH_7B),--7b)

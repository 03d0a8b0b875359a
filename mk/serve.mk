# Served end to end: HTTPS clients at Tiergate and at llama-cpp-python's server in turns (SERVE_CLIENTS=1,4,8,16,32 SERVE_ROUNDS=5 SERVE_PROMPT=4000), and whether
# the time of an answer tells one tenant what another has asked.
.PHONY: bench-serve probe-timing
bench-serve: $(B)/tiergate model-file ## HTTPS clients at Tiergate and at llama-cpp-python's server in turns (SERVE_CLIENTS=8,16 SERVE_ROUNDS=5 SERVE_PROMPT=4000)
	-@$(MAKE) --no-print-directory $(BENCH_VENV)/installed
	@python=$(BENCH_VENV)/bin/python; [ -f $(BENCH_VENV)/installed ] || { echo "skip: llama-cpp-python cannot be installed here; Tiergate alone"; python=$(PYTHON); alone=--alone; }; \
	$$python tests/bench/serve/serve_bench.py --model $(TIERGATE_TEST_MODEL) --tiergate $(B)/tiergate $$alone \
	    $(if $(SERVE_CLIENTS),--clients $(SERVE_CLIENTS)) $(if $(SERVE_ROUNDS),--rounds $(SERVE_ROUNDS)) $(if $(SERVE_PROMPT),--prompt $(SERVE_PROMPT))
probe-timing: $(B)/tiergate model-file ## does the time of an answer tell a tenant what another has asked? (PROBES=500)
	@$(PYTHON) tests/bench/serve/timing_probe.py --model $(TIERGATE_TEST_MODEL) --tiergate $(B)/tiergate $(if $(PROBES),--probes $(PROBES))

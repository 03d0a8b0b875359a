# The gateway beside nginx and Portkey's gateway, in front of upstreams that compute nothing: tests/bench/gateway. BENCH_SMOKE=1: a few hundred
# requests through each of our own, counted and looked up in the ledger. BENCH="--alternations 3 --only governed" passes options on.
BENCH_GATEWAY := $(patsubst %,$(B)/bench/gateway/%,load mock null_worker)
$(B)/bench/gateway/load $(B)/bench/gateway/mock: $(B)/lib/base.a
.SECONDEXPANSION:
$(B)/bench/gateway/null_worker: $$(call libs,worker)
$(BENCH_GATEWAY): $(B)/bench/gateway/%: tests/bench/gateway/%.c tests/bench/gateway/token.h
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) -o $@

# Portkey's gateway, pinned, with its own packages.
PORTKEY := build/bench/portkey
$(PORTKEY)/node_modules/.installed: tests/bench/gateway/package.json tests/bench/gateway/package-lock.json
	@mkdir -p $(PORTKEY)
	cp $^ $(PORTKEY)
	cd $(PORTKEY) && npm ci --silent --omit=dev
	@touch $@

.PHONY: bench-gateway
bench-gateway: $(B)/tiergate $(BENCH_GATEWAY) build/tests/clock_shim.so ## the gateway's cost a request and a token, beside nginx and Portkey (BENCH_SMOKE=1: only whether it works)
	$(if $(BENCH_SMOKE),,@tools/install.sh bench)
	$(if $(BENCH_SMOKE),,-@$(MAKE) --no-print-directory $(PORTKEY)/node_modules/.installed)
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) tests/bench/gateway/bench.py $(if $(BENCH_SMOKE),--smoke) $(BENCH)

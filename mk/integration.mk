# Integration tests: SDKs and hostile clients against a real installation (tests/integration). Their packages are installed once into
# build/integration (pip and npm); without a network the tests that need them are skipped. TIERGATE_READY tests an installation that runs.
INTEGRATION := build/integration
INTEGRATION_PYTHON := $(INTEGRATION)/bin/python

$(INTEGRATION)/installed: tests/requirements.txt
	$(PYTHON) -m venv $(INTEGRATION)
	$(INTEGRATION_PYTHON) -m pip install -q --disable-pip-version-check -r $<
	@touch $@
$(INTEGRATION)/node/node_modules/.installed: tests/package.json tests/package-lock.json
	@mkdir -p $(INTEGRATION)/node
	cp $^ $(INTEGRATION)/node
	cd $(INTEGRATION)/node && npm ci --silent
	@touch $@

# A model as a Hugging Face directory.
$(B)/tests/hf_directory: $(B)/obj/tests/support/hf_directory.o $(B)/lib/engine_tests.a $(ENGINE_LIBS)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@

# The catalogue of malformed models as files, for `tiergate model check`.
$(B)/tests/malformed_files: $(B)/obj/tests/support/malformed_files.o $(B)/lib/support.a $(B)/lib/model.a $(B)/lib/base.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@

.PHONY: integration
integration: $(B)/tiergate $(B)/tests/malformed_files $(B)/tests/hf_directory build/tests/chaos_proxy build/tests/clock_shim.so model-file ## SDKs and hostile clients against a real installation (PYTEST="-k stream" chooses)
	-@$(MAKE) --no-print-directory $(INTEGRATION)/installed
	-@$(MAKE) --no-print-directory $(INTEGRATION)/node/node_modules/.installed
	@[ -f $(INTEGRATION)/installed ] || { echo "skip: openai-python cannot be installed here"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }; \
	TIERGATE_BIN=$(B)/tiergate TIERGATE_NODE_MODULES=$(INTEGRATION)/node/node_modules \
	    $(INTEGRATION_PYTHON) -m pytest -q -p no:cacheprovider -rs tests/integration $(PYTEST)

.PHONY: bench-fairness
bench-fairness: $(B)/tiergate build/tests/chaos_proxy build/tests/clock_shim.so model-file $(INTEGRATION)/installed ## how long a visitor waits beside 10,000 requests of another tenant: make bench-fairness SECONDS=60
	@TIERGATE_BIN=$(B)/tiergate $(INTEGRATION_PYTHON) tests/bench/fairness.py $(or $(SECONDS),60)

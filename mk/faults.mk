# Random faults against real processes and servers, and a checker that shares no counter with the product: tests/faults.
# make faults SEED=7 FAULTS_SECONDS=300; without a seed one is drawn and printed. More: FAULTS="--only worker-killed --keep".
# make faults SEEDS="1 2 3": one after another, a line for each and their sums; the logs are in build/faults.
FAULTS_PYTHON := $(or $(shell command -v python3.11),python3)
FAULTS_SECONDS ?= 60
FAULTS_TOOLS = build/tests/chaos_proxy build/tests/clock_shim.so
FAULTS_RUN = env PYTHONDONTWRITEBYTECODE=1 $(FAULTS_PYTHON) tests/faults/faults.py

build/tests/chaos_proxy: tests/faults/chaos_proxy.c
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)gcc -std=c11 -D_GNU_SOURCE $(WARN) -O2 $< -o $@

build/tests/clock_shim.so: tests/faults/clock_shim.c
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)gcc -std=c11 -D_GNU_SOURCE $(WARN) -O2 -fPIC -shared $< -o $@

.PHONY: faults faults-quick faults-matrix faults-mutants
faults: $(B)/tiergate $(FAULTS_TOOLS) ## random faults on real servers (SEED= or SEEDS="...", FAULTS_SECONDS=60, FAULTS="...", MODE=tsan)
	@$(FAULTS_RUN) $(addprefix --seed ,$(SEED)) $(if $(SEEDS),--seeds "$(SEEDS)") --seconds $(FAULTS_SECONDS) --binary $(abspath $<) $(FAULTS)
faults-quick: build/tiergate $(FAULTS_TOOLS) ## a short version for make check: three minutes at most (the seed is drawn and printed)
	@timeout -k 30 180 $(FAULTS_RUN) $(addprefix --seed ,$(SEED)) --seconds $(FAULTS_SECONDS) --rest 45 --within 160 $(FAULTS)
faults-matrix: build/tiergate $(FAULTS_TOOLS) ## each fault at each stage, one line a cell (FAULTS="--only 'kill -9 gateway'")
	@$(FAULTS_RUN) $(addprefix --seed ,$(SEED)) --matrix --rate 60 --clients 32 $(FAULTS)
faults-mutants: build/tiergate $(FAULTS_TOOLS) ## planted faults, each of which the checker must see
	@$(FAULTS_PYTHON) tests/faults/mutants.py $(MUTANTS)

# Random faults against real processes and servers, and a checker that shares no counter with the product: tests/faults.
# make faults SEED=7 FAULTS_SECONDS=300; without a seed one is drawn and printed. More: FAULTS="--only worker-killed --keep".
FAULTS_PYTHON := $(or $(shell command -v python3.11),python3)
FAULTS_SECONDS ?= 60
FAULTS_RUN = PYTHONDONTWRITEBYTECODE=1 $(FAULTS_PYTHON) tests/faults/faults.py

build/tests/chaos_proxy: tests/faults/chaos_proxy.c
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)gcc -std=c11 -D_GNU_SOURCE $(WARN) -O2 $< -o $@

.PHONY: faults faults-quick faults-matrix faults-mutants
faults: build/tiergate build/tests/chaos_proxy ## random faults on real servers (SEED=, FAULTS_SECONDS=60, FAULTS="...")
	@$(FAULTS_RUN) $(addprefix --seed ,$(SEED)) --seconds $(FAULTS_SECONDS) $(FAULTS)
faults-quick: build/tiergate build/tests/chaos_proxy ## the random run in short (FAULTS_SECONDS=60; the seed is drawn and printed)
	@$(FAULTS_RUN) $(addprefix --seed ,$(SEED)) --seconds $(FAULTS_SECONDS) --rest 45 $(FAULTS)
faults-matrix: build/tiergate build/tests/chaos_proxy ## each fault at each stage, one line a cell (FAULTS="--only 'kill -9 gateway'")
	@$(FAULTS_RUN) $(addprefix --seed ,$(SEED)) --matrix --rate 60 --clients 32 --clock $(FAULTS)
faults-mutants: build/tiergate build/tests/chaos_proxy ## planted faults, each of which the checker must see
	@$(FAULTS_PYTHON) tests/faults/mutants.py $(MUTANTS)

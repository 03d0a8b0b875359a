# An hour of mixed load on a whole installation, and what it is like afterwards: tests/integration/endurance.py. SEED= repeats one.
ENDURANCE_SECONDS ?= 3600
.PHONY: endurance
endurance: $(B)/tiergate model-file ## 20 tenants' mixed load for an hour: nothing grows, nothing is lost, nothing is left (ENDURANCE_SECONDS=3600, SEED=)
	-@$(MAKE) --no-print-directory $(INTEGRATION)/installed
	@TIERGATE_BIN=$(B)/tiergate PYTHONDONTWRITEBYTECODE=1 $(INTEGRATION_PYTHON) tests/integration/endurance.py $(ENDURANCE_SECONDS) $(SEED)

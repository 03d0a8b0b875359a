# Clients that vanish mid-stream, AT_ONCE side by side, and what each cost afterwards: tests/integration/vanish.py.
CLIENTS ?= 1000
AT_ONCE ?= 100
.PHONY: vanish
vanish: $(B)/tiergate model-file ## clients that vanish mid-stream: tokens made for them afterwards, time to the free place, holds (CLIENTS=1000, AT_ONCE=100)
	-@$(MAKE) --no-print-directory $(INTEGRATION)/installed
	@TIERGATE_BIN=$(B)/tiergate PYTHONDONTWRITEBYTECODE=1 $(INTEGRATION_PYTHON) tests/integration/vanish.py $(CLIENTS) $(AT_ONCE)

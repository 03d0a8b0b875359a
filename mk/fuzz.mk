# Fuzzing (libFuzzer, clang-14, ASan + UBSan). To add a target:
#   1. tests/fuzz/NAME_fuzz.c with LLVMFuzzerTestOneInput; nothing else is needed to build it.
#   2. FUZZ_ROOM_NAME := the room it tests (or several), in mk/ROOM.mk or below; the target links
#      these and what they use.
#   3. Optional: FUZZ_FLAGS_NAME (as -max_len=4096), and tests/fuzz/NAME.dict (a libFuzzer
#      dictionary), which is found by itself.
#   4. Small seeds in tests/fuzz/corpus/NAME/, committed. They are replayed by `make fuzz-smoke`,
#      which `make check` runs. What a run finds goes there too, named after what was wrong.
# A run writes its working corpus to build/fuzz/corpus/NAME and findings to build/fuzz/found/NAME-*.
FUZZ_ROOM_safetensors := model
FUZZ_FLAGS_safetensors := -max_len=4096
FUZZ_ROOM_hf := model
FUZZ_FLAGS_hf := -max_len=16384
FUZZ_ROOM_gguf := model
FUZZ_FLAGS_gguf := -max_len=32768

FUZZ_SECONDS ?= 60
FUZZ_NAMES := $(patsubst tests/fuzz/%_fuzz.c,%,$(wildcard tests/fuzz/*_fuzz.c))
FUZZ_DIR := build/fuzz
FUZZ_MAKE = +@$(MAKE) --no-print-directory MODE=fuzz
FUZZ_COMMON = -timeout=10 -rss_limit_mb=2048

.PHONY: fuzz fuzz-build fuzz-smoke $(FUZZ_NAMES:%=fuzz-%) $(FUZZ_NAMES:%=fuzz-run-%)
fuzz: ## build every fuzz target and run each for FUZZ_SECONDS (60)
	$(FUZZ_MAKE) fuzz-build $(FUZZ_NAMES:%=fuzz-run-%)
fuzz-smoke: ## replay the committed corpora through every fuzz target
	$(FUZZ_MAKE) fuzz-replay
$(FUZZ_NAMES:%=fuzz-%): fuzz-%: ## fuzz-NAME: build and run one target for FUZZ_SECONDS
	$(FUZZ_MAKE) $(FUZZ_DIR)/$*_fuzz fuzz-run-$*

ifeq ($(MODE),fuzz)
fuzz_room = $(or $(FUZZ_ROOM_$(1)),$(error FUZZ_ROOM_$(1) is not set: see mk/fuzz.mk))
fuzz_libs = $(patsubst %,$(B)/lib/%.a,$(sort $(foreach r,$(call fuzz_room,$(1)),$(r) $(USES_$(r)))))
FUZZ_BIN := $(FUZZ_NAMES:%=$(FUZZ_DIR)/%_fuzz)
# The room of a target may be set in a file that is read later.
.SECONDEXPANSION:
$(FUZZ_BIN): $(FUZZ_DIR)/%_fuzz: tests/fuzz/%_fuzz.c $$(call fuzz_libs,$$*)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) -fsanitize=fuzzer -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) -o $@

fuzz-build: $(FUZZ_BIN)
$(FUZZ_NAMES:%=fuzz-run-%): fuzz-run-%: $(FUZZ_DIR)/%_fuzz
	@mkdir -p $(FUZZ_DIR)/corpus/$* $(FUZZ_DIR)/found tests/fuzz/corpus/$*
	@echo "fuzz $*: $(FUZZ_SECONDS) s"
	@$< $(FUZZ_COMMON) -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$(FUZZ_DIR)/found/$*- \
	    $(FUZZ_FLAGS_$*) $(addprefix -dict=,$(wildcard tests/fuzz/$*.dict)) \
	    $(FUZZ_DIR)/corpus/$* tests/fuzz/corpus/$* >$(FUZZ_DIR)/$*.log 2>&1 \
	    || { tail -60 $(FUZZ_DIR)/$*.log; echo "fuzz $*: FAILED, see $(FUZZ_DIR)/found"; exit 1; }
	@grep -E '^Done [0-9]+ runs' $(FUZZ_DIR)/$*.log | sed 's/^/fuzz $*: /'
.PHONY: fuzz-replay
fuzz-replay: $(FUZZ_BIN)
	@tools/fuzz_replay.sh $(FUZZ_DIR) $(FUZZ_NAMES)
endif

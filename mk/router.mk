# The Lua libraries are part of the binary (router/library.c).
$(B)/obj/router/library.o: router/queue.lua router/quota.lua
FUZZ_ROOM_codec := router
FUZZ_FLAGS_codec := -max_len=4096
# Its catalogue serves a tiny model, whose weights are packed by kernels/.
$(B)/unit/router/assign_test: $(B)/lib/kernels.a

$(B)/bench/queue_bench: tests/bench/queue_bench.c $(B)/lib/router.a $(B)/lib/model.a $(B)/lib/base.a $(B)/lib/support.a
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $< $(LDFLAGS) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(LDLIBS) -o $@
.PHONY: bench-queue
bench-queue: $(B)/bench/queue_bench ## cost of a claim with few and many waiting tenants, and of large prompts
	@$<

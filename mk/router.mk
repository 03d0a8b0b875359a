# The Lua libraries are part of the binary (router/library.c).
$(B)/obj/router/library.o: router/queue.lua router/quota.lua
FUZZ_ROOM_codec := router
FUZZ_FLAGS_codec := -max_len=4096
# Its catalogue serves a tiny model, whose weights are packed by kernels/.
$(B)/unit/router/assign_test: $(B)/lib/kernels.a

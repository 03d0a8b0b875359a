# The Lua libraries are part of the binary (router/library.c).
$(B)/obj/router/library.o: router/queue.lua router/quota.lua

FUZZ_ROOM_head := server
FUZZ_FLAGS_head := -max_len=8192

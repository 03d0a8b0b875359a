FUZZ_ROOM_head := server
FUZZ_FLAGS_head := -max_len=8192

FUZZ_ROOM_request := server
FUZZ_FLAGS_request := -max_len=4096

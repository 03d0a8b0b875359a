// Is there room for more work? Where an address space is limited (RLIMIT_AS) or memory is not
// overcommitted, allocations fail before the machine is full; new work is refused a good while
// before that, so that what runs can end.
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H
#include <stdbool.h>
#include <stddef.h>

#define MEMORY_RESERVE_BYTES ((size_t)16 << 20)

// True: less than MEMORY_RESERVE_BYTES can be had, as of the last 10 ms. Any thread.
bool memory_is_short(void);

#endif

// Asks the kernel by taking the reserve and giving it back untouched. Owns the last answer; any
// thread. Does not see the limit of a control group, at which the kernel kills.
#include "base/memory.h"
#include "base/clock.h"
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

#define ASK_MS 10

static _Atomic int64_t asked_ms;
static atomic_bool is_short;

bool memory_is_short(void) {
    int64_t now_ms = clock_mono_ms();
    if (now_ms - atomic_load(&asked_ms) >= ASK_MS) {
        atomic_store(&asked_ms, now_ms);
        void *p = mmap(NULL, MEMORY_RESERVE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        atomic_store(&is_short, p == MAP_FAILED);
        if (p != MAP_FAILED)
            munmap(p, MEMORY_RESERVE_BYTES);
    }
    return atomic_load(&is_short);
}

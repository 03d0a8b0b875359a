// Preloaded (LD_PRELOAD) it moves one process' wall clock by what a file says at that moment:
// CLOCK_SHIM names a file of eight bytes, milliseconds as a signed number, which is mapped.
// Monotonic clocks stay true. It allocates nothing and looks up no symbol, so it bears any
// allocator (Redis comes with its own). Owns the mapping until the process ends.
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const _Atomic int64_t *offset_ms;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_SHIM");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset_ms, PROT_READ, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED)
        offset_ms = p;
    if (fd >= 0)
        close(fd);
}

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    syscall(SYS_clock_gettime, clock, &t);
    int64_t ms = offset_ms ? atomic_load_explicit(offset_ms, memory_order_relaxed) : 0;
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec + ms * 1000000;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)
        return (int)syscall(SYS_clock_gettime, clock, t);
    int64_t ns = now_ns(clock);
    *t = (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    (void)zone;
    int64_t ns = now_ns(CLOCK_REALTIME);
    *t = (struct timeval){.tv_sec = ns / 1000000000, .tv_usec = ns / 1000 % 1000000};
    return 0;
}

time_t time(time_t *t) {
    time_t s = now_ns(CLOCK_REALTIME) / 1000000000;
    if (t)
        *t = s;
    return s;
}

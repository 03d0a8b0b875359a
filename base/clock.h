// Time. Leases and silences use the monotonic clock; the wall clock is for what people read.
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H
#include <stdint.h>

int64_t clock_mono_ms(void);
int64_t clock_mono_us(void);
int64_t clock_unix_ms(void);
void clock_sleep_ms(int ms);
void clock_sleep_us(int64_t us);

#endif

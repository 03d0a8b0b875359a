// Philox4x32-10, a counter-based random number generator: the same (counter, key) gives the same
// four words on every machine and backend, with no state to carry.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#ifndef ENGINE_PHILOX_H
#define ENGINE_PHILOX_H
#include <stdint.h>

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

// The 64 random bits of the token at `position` of choice `choice`: words 0 (high) and 1 of the
// block with key = seed and counter = {position, choice, 0, 0}.
uint64_t philox_token(uint64_t seed, uint32_t choice, uint32_t position);

#endif

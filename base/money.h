// Amounts of money as people read them. The unit is whatever currency the prices are in; the
// product counts in nano-units (10^-9), whole. Any thread.
#ifndef BASE_MONEY_H
#define BASE_MONEY_H
#include <stdint.h>
#include "base/err.h"

#define MONEY_TEXT 32
#define MONEY_MOST 9007199254740991 // nano-units: 2^53 - 1, whole in Lua's numbers too

// "12.50", "0.000000003": two to nine decimals.
void money_format(int64_t nano, char out[MONEY_TEXT]);
// "12", "12.5", "0.000000003", from 0 to MONEY_MOST. ERR_INVALID says what is wrong, without a
// param.
int money_parse(const char *text, int64_t *nano, err *e);

#endif

// Decimal text from and to nano-units. Owns nothing. Does no arithmetic in floating point.
#include "base/money.h"
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define UNIT 1000000000
#define DECIMALS 9

void money_format(int64_t nano, char out[MONEY_TEXT]) {
    int64_t size = nano < 0 ? -nano : nano;
    int n = snprintf(out, MONEY_TEXT, "%s%" PRId64 ".%09" PRId64, nano < 0 ? "-" : "", size / UNIT,
                     size % UNIT);
    for (int kept = DECIMALS; kept > 2 && out[n - 1] == '0'; kept--)
        out[--n] = '\0';
}

int money_parse(const char *text, int64_t *nano, err *e) {
    const char *at = text;
    int decimals = -1; // digits after the point; -1: before it
    *nano = 0;
    for (; *at && decimals <= DECIMALS; at++) {
        if (*at == '.' && decimals < 0 && at != text) {
            decimals = 0;
            continue;
        }
        if (*at < '0' || *at > '9' || *nano > MONEY_MOST / 10)
            break;
        *nano = *nano * 10 + (*at - '0');
        decimals += decimals >= 0;
    }
    bool is_whole = !*at && at != text && decimals != 0 && decimals <= DECIMALS;
    for (int i = decimals < 0 ? 0 : decimals; is_whole && i < DECIMALS; i++) {
        is_whole = *nano <= MONEY_MOST / 10;
        *nano *= is_whole ? 10 : 1;
    }
    if (is_whole && *nano <= MONEY_MOST)
        return 0;
    return err_set(e, ERR_INVALID, NULL,
                   "'%.40s' is no amount from 0 to %lld with at most 9 decimals", text,
                   (long long)(MONEY_MOST / UNIT));
}

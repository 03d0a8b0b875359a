/* The counters of one scope under hold, extend, settle, commit, drop and load by REQUESTS requests, while Redis may lose
 * everything WIPES times: the living specification of P4. Kept in step with the code:
 *
 * proctype and label   rule                        C and Lua
 * request              steps 2, 6, 7, 8            router/request_hold.c, request_close.c, recorder.c
 *   hold               hold, one call              router/quota.lua: hold, fit_scope; request_hold.c: request_hold, on_hold
 *   extend             step 6                      quota.lua: extend; request_hold.c: request_extend, on_extend
 *   settle, commit     close                       quota.lua: settle, settle_now; usage.c: insert_sql
 *   drop               close                       quota.lua: settle with drop 1
 *   miss               R6, a missing scope         quota.lua: load; quota_load.c: quota_loader_submit; quota.c: quota_read_ledger
 * wipe                 "Redis wiped"               FLUSHALL
 * checker              P4                          tests/faults/checker.py: check_limits, left_in_redis
 *
 * Each request wants WANT tokens and uses 1 .. granted of them. The ledger has the settled sum. Reading it and loading it are
 * two steps, between which anything may happen: hence the nonce.
 * Mutants: -DMUTANT_<NAME>; each must break an assertion. */
#ifndef REQUESTS
#define REQUESTS 3
#endif
#ifndef WIPES
#define WIPES 2
#endif
#define LIMIT 3
#define WANT 2

/* Redis: the scope and the records */
bool is_loaded;
byte used, held, nonce, last_nonce; /* nonce 0: nobody loads */
bool is_open[REQUESTS], is_settled[REQUESTS];
byte record_held[REQUESTS];
/* PostgreSQL */
byte ledger;
/* ghosts */
byte wipes = WIPES, in_flight, lost_in_flight; /* held and not yet committed: now, and at the wipes */

#define WITHIN_LIMIT (wipes < WIPES || used + held <= LIMIT)

inline settle(i, tokens) {
    if
#ifdef MUTANT_RELEASE_TWICE
    :: is_open[i] ->
#else
    :: is_open[i] && !is_settled[i] ->
#endif
        held = held - record_held[i];
        used = used + tokens;
        is_settled[i] = true
    :: else -> skip
    fi
}

inline forget(i) { is_open[i] = false; is_settled[i] = false; record_held[i] = 0 }

proctype request(byte i) {
    byte granted, tokens, own_nonce, snapshot;

hold:
    atomic {
        if
        :: !is_loaded -> /* MISS; the first one's nonce stands */
            if :: nonce == 0 -> last_nonce++; nonce = last_nonce :: else fi;
            own_nonce = nonce;
            goto miss
        :: is_loaded && used + held >= LIMIT -> goto refused /* an implicit demand is refused at zero only */
        :: is_loaded && used + held < LIMIT ->
            granted = LIMIT - used - held;
            if :: granted > WANT -> granted = WANT :: else fi;
#ifdef MUTANT_HOLD_IN_TWO_STEPS
        fi };
    atomic { if :: true ->
#endif
            held = held + granted;
            is_open[i] = true;
            is_settled[i] = false;
            record_held[i] = granted;
            in_flight = in_flight + granted;
            assert(WITHIN_LIMIT)
        fi };
extend:
    atomic { /* one token more, or the answer does not grow */
        if
#ifdef MUTANT_EXTEND_BLINDLY
        :: is_loaded && is_open[i] ->
#else
        :: is_loaded && is_open[i] && used + held < LIMIT ->
#endif
            held++;
            in_flight++;
#ifndef MUTANT_EXTEND_UNRECORDED
            record_held[i]++;
#endif
            assert(WITHIN_LIMIT)
        :: goto use
        fi };
    atomic { /* its answer was lost: asked once more, naming the old grant */
        if
#ifdef MUTANT_EXTEND_AGAIN
        :: is_loaded && is_open[i] && used + held < LIMIT -> held++; record_held[i]++
#else
        :: is_loaded && is_open[i] && used + held < LIMIT && record_held[i] == granted -> held++; record_held[i]++
#endif
        :: true
        fi;
        granted++;
        assert(WITHIN_LIMIT && record_held[i] <= granted) };
use:
    select (tokens : 1 .. granted);
    atomic { settle(i, tokens) };
commit:
    atomic { ledger = ledger + tokens; in_flight = in_flight - granted };
drop:
    atomic { settle(i, tokens); forget(i) };
    goto refused;

miss:
    snapshot = ledger; /* SELECT */
    atomic {
        if
#ifdef MUTANT_LOAD_WITHOUT_NONCE
        :: !is_loaded ->
#else
        :: !is_loaded && nonce == own_nonce ->
#endif
            is_loaded = true; nonce = 0; used = snapshot; held = 0
        :: else -> skip
        fi;
        snapshot = 0; own_nonce = 0;
        goto hold };

refused:
    granted = 0; tokens = 0
}

proctype wipe() {
    byte i;
    do
    :: atomic { wipes > 0 ->
        wipes--;
        is_loaded = false; used = 0; held = 0; nonce = 0;
        lost_in_flight = lost_in_flight + in_flight;
        for (i : 0 .. REQUESTS - 1) { forget(i) };
        i = 0 }
    :: break
    od
}

proctype checker() {
    timeout;
    assert(ledger <= LIMIT + lost_in_flight);            /* P4 */
    assert(held == 0);
    assert(wipes < WIPES || !is_loaded || used == ledger) /* never wiped: Redis and the ledger agree */
}

init {
    byte i;
    atomic {
        for (i : 0 .. REQUESTS - 1) { run request(i) };
        run wipe(); run checker()
    }
}

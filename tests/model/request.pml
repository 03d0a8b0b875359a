/* The life of one request, from its hold to its forgotten record, under any faults: the living specification of P1, P2, P3
 * and P6 (tests/model/README.md says what they mean). It is kept in step with the code: whoever changes one of the functions
 * named here changes this file too.
 *
 * proctype and label      rule                  C
 * owner                   the good case         router/request*.c: the gateway that accepted the request
 *   hold, accept          steps 2, 3            request_hold.c: request_hold, on_hold, accept; journal.c: journal_accept
 *   mark                  step 3                request_attempt.c: request_enqueue; request_close.c: request_report
 *   release               step 2                request_hold.c: release_hold, router_release_holds
 *   queued_or_running     steps 3, 6; R1        request_attempt.c: request_enqueue; request_run.c: passes, take_tokens
 *   redeliver             R2, R3                request_attempt.c: request_redeliver; request_run.c: request_check_silence
 *   returned              R3                    request_attempt.c: request_give_back; worker.c: give_back
 *   closing               step 7                request_close.c: request_close, send_settle
 *   settle_answered       step 7, R7            request_close.c: on_settled, end_is_failed, request_check_closing
 *   unrecorded            step 8                recorder.c: run, settle_all, insert_patiently, tell
 * worker                  steps 4, 5, 8         worker/worker.c: claim, take_job, step, send_all; outbox.c: outbox_send
 * sweeper                 R5                    router/sweep.c: look_at, find_row, close_record, release_record; then the recorder
 * recovery                close, second caller  router/journal_replay.c: journal_replay; sweep.c: sweep_journaled
 * lease_expiry            R4                    router/lease.c: lease_check, end_incarnation; Redis ends the key
 * faults                  "Each fault"          tests/faults/injuries.py deals the same to real processes
 * settle, drop, release   close                 router/quota.lua: settle, settle_now, release, progress
 * insert_row              step 8, P2            router/usage.c: insert_sql
 * enqueue, cancel_entry   R3                    router/queue.lua: enqueue, cancel
 *
 * Every timeout is a free choice: a silence, a lease, a deadline may run out at any moment, rightly or wrongly. So slow,
 * stopped and cut-off parties are all covered, and time itself is not. Each atomic block is one step of the real system: a
 * call of Redis, a commit, an append, a write to the client's socket.
 *
 * BUDGET    faults of all kinds together
 * ATTEMPTS  that a worker may lose; 3 in the product, 2 show the same races. One that a worker gives back does not count
 *           (in the product it does from the 17th on, so that there is an end).
 * Mutants: -DMUTANT_<NAME>; each must break an assertion. */
#ifndef BUDGET
#define BUDGET 2
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2
#endif
#define NUMBERS (ATTEMPTS + BUDGET) /* of attempts: as many as may be lost, and giving one back is a fault; 3 or 4 */
#define TOKENS 2 /* of a complete answer */
#define RETURNED 99 /* instead of a position: the worker goes, and this run is over */

mtype:record = { ABSENT, HELD, OPEN, SETTLED }; /* HELD: open, but not known as accepted */
mtype:entry = { NEVER, WAITS, POPPED }; /* POPPED: gone, unless a failover undoes the claim or the cancel */
mtype:outcome = { NONE, COMPLETE, ERROR, DROPPED }; /* what the client saw */

byte budget = BUDGET;

/* ---- Redis: the record, this request's part of the scopes, the lease, the queue, the reply stream */
mtype:record record = ABSENT;
byte record_sent, record_tokens; /* the last report; what was settled */
byte held, settled;
bool lease;
mtype:entry entry[NUMBERS + 1];
byte entry_from[NUMBERS + 1]; /* tokens that the job already has */
chan replies = [2] of { byte, byte, byte, byte }; /* attempt, run, the run's first position, position */

/* ---- the gateway's process and disk; the ledger */
bool alive, knows, line_a, line_f, line_c, disk_lost;
byte line_f_tokens;
byte rows, row_tokens, counted;

/* ---- ghosts: nobody in the product reads them */
byte handed, reported, made_by[TOKENS];
mtype:outcome outcome = NONE;
bool accepted, marked, record_lost, gateway_fault, redis_fault;

hidden byte f_attempt, f_run, f_begin, f_at; /* scratch within one step */

/* One transaction: INSERT .. ON CONFLICT DO NOTHING RETURNING, and quota_used from what it returned. sum: afterwards the row's. */
inline insert_row(sum) {
    if
    :: rows == 0 -> rows = 1; row_tokens = sum; counted = counted + sum
    :: else ->
#ifdef MUTANT_COUNT_ON_CONFLICT
        counted = counted + sum;
#endif
#ifndef MUTANT_DROP_WITHOUT_THE_ROW
        sum = row_tokens
#else
        skip
#endif
    fi
}

/* The first settler decides; decided = its tokens, or ours when the record is gone. */
inline settle(ours, decided) {
    decided = ours;
    if
#ifdef MUTANT_RELEASE_TWICE
    :: record != ABSENT ->
#else
    :: record == HELD || record == OPEN ->
#endif
        record = SETTLED; record_tokens = ours;
        assert(held > 0);
        held--; settled = settled + ours
#ifndef MUTANT_RELEASE_TWICE
    :: record == SETTLED -> decided = record_tokens
#endif
    :: record == ABSENT -> skip
    fi
}

/* The row is committed: forget the record, after settling it if a failover undid that, or righting what it was settled with. */
inline drop(sum) {
    if
    :: record == HELD || record == OPEN -> assert(held > 0); held--; settled = settled + sum
    :: record == SETTLED -> settled = settled + sum - record_tokens
    :: record == ABSENT -> skip
    fi;
    record = ABSENT; record_tokens = 0; record_sent = 0
}

/* A hold whose request was never accepted leaves no row. */
inline release() {
    if
    :: record == HELD -> assert(held > 0); held--; record = ABSENT
    :: else -> skip
    fi
}

/* Progress: the first one says that the request was accepted. */
inline mark() {
    if
    :: record == HELD -> record = OPEN; marked = true
    :: else -> skip
    fi
}

inline enqueue(attempt, from) { entry[attempt] = WAITS; entry_from[attempt] = from }

inline cancel_entry(attempt) { if :: entry[attempt] == WAITS -> entry[attempt] = POPPED :: else fi }

/* XADD .. MAXLEN: the oldest message may be trimmed away. */
inline append_reply(attempt, run_number, begin, at) {
    if
    :: full(replies) -> replies?_, _, _, _
    :: nfull(replies)
    fi;
    replies!attempt, run_number, begin, at
}

/* An event was taken by the socket. P6: each token once, in order, sampled after exactly those before it. */
inline hand_over() {
    assert(f_at == handed);
    assert(f_at == f_begin || made_by[f_at - 1] == f_run);
    made_by[f_at] = f_run;
    handed++;
    if /* the report of each second came by, or not yet */
    :: record == HELD || record == OPEN -> mark(); record_sent = handed; reported = handed
    :: true
    fi
}

proctype owner() {
    byte attempt = 1, lost, tokens; /* lost: attempts that did not end well */
    byte run_number;                /* of the CLAIM that came first for this attempt */
    bool is_complete, is_cut; /* is_cut: Redis is out of reach, for as long as may be */

hold:
    atomic { alive && lease -> record = HELD; held++; knows = true };
    atomic { /* its answer is lost: refused, not accepted; released at once, or the sweep finds the record */
        if
        :: budget > 0 && alive -> budget--; knows = false; if :: release() :: true fi; goto out
        :: alive -> skip
        :: !alive -> goto out
        fi };
accept:
    atomic { if :: alive -> line_a = true; accepted = true :: !alive -> goto out fi };
#ifndef MUTANT_NO_MARK
    atomic { if :: alive && lease -> mark() :: alive && !lease -> skip :: !alive -> goto out fi };
#endif
    atomic { if :: alive && lease -> enqueue(1, 0) :: alive && !lease -> skip :: !alive -> goto out fi };

queued_or_running:
    do
    :: atomic { alive && nempty(replies) ->
        replies?f_attempt, f_run, f_begin, f_at;
        if
#ifndef MUTANT_NO_FENCE
#ifdef MUTANT_FENCE_ON_ATTEMPT
        :: f_attempt != attempt -> skip
#else
        :: f_attempt != attempt || (run_number != 0 && f_run != run_number) -> skip /* R1: fenced */
#endif
#endif
        :: f_at == RETURNED && run_number != f_run -> skip
        :: f_at == RETURNED && run_number == f_run ->
#ifdef MUTANT_RETURN_KEEPS_NUMBER
            run_number = 0;
            if :: lease -> mark(); enqueue(attempt, handed) :: else fi
#else
            goto next_attempt
#endif
        :: else ->
            run_number = f_run;
            if
#ifndef MUTANT_TAKES_REPEATS
            :: f_at < handed -> skip /* a message whose answer was lost came twice */
#endif
            :: f_at > handed -> goto redeliver /* a gap: messages were trimmed */
            :: else ->
                hand_over();
                if :: handed == TOKENS -> is_complete = true; goto closing :: else fi
            fi
        fi }
    :: atomic { alive && !lease -> goto closing }                      /* R4: the incarnation is over */
    :: atomic { alive -> goto redeliver }                              /* R2: silence, right or wrong */
    :: atomic { alive -> outcome = DROPPED; goto closing }             /* the client went away */
    :: atomic { alive -> goto closing }                                /* deadline, revoked, no other worker in time */
    :: atomic { !alive -> goto out }
    od;

redeliver:
    atomic {
        if
        :: !alive -> goto out
        :: alive && (lost == ATTEMPTS - 1 || !lease) -> goto closing   /* dead letter */
        :: alive && lost < ATTEMPTS - 1 && lease -> lost++; goto next_attempt
        fi };

next_attempt: /* also of one that was given back: with its old number a late message of an earlier run could pass */
    atomic {
        if
        :: !alive -> goto out
        :: alive && !lease -> goto closing
        :: alive && lease ->
            cancel_entry(attempt);
            attempt++;
            run_number = 0;
#ifdef MUTANT_CONTINUES_FROM_REPORT
            enqueue(attempt, record_sent);
#else
            mark();
            enqueue(attempt, handed);
#endif
            goto queued_or_running
        fi };

closing:
    atomic {
        if
        :: alive -> line_f = true; line_f_tokens = handed; cancel_entry(attempt)
        :: !alive -> goto out
        fi };
#ifdef MUTANT_DONE_BEFORE_SETTLE
    atomic { if :: alive -> if :: outcome == NONE && is_complete -> outcome = COMPLETE :: else fi :: !alive -> goto out fi };
#endif
    tokens = handed;
    atomic {
        if
        :: alive ->
            if :: record == ABSENT -> is_complete = false :: else fi;
            settle(handed, tokens);
            if :: tokens != handed -> is_complete = false :: else fi   /* R7: not ours, no [DONE] */
        :: alive && budget > 0 -> budget--; is_cut = true; is_complete = false /* 2 s without an answer: given up, settled or not */
            if :: settle(handed, tokens); tokens = handed :: true fi
        :: !alive -> goto out
        fi };
settle_answered:
    atomic {
        if
        :: alive && outcome == NONE && is_complete -> outcome = COMPLETE
        :: alive && outcome == NONE && !is_complete -> outcome = ERROR
        :: alive && outcome != NONE -> skip
        :: !alive -> goto out
        fi };

unrecorded:
    atomic { /* settled again where the answer is not known; Redis may be out of the recorder's reach */
        if
        :: alive && !is_complete -> if :: settle(tokens, tokens) :: is_cut :: budget > 0 -> budget--; is_cut = true fi
        :: alive && is_complete -> skip
        :: !alive -> goto out
        fi };
#ifdef MUTANT_DROP_BEFORE_COMMIT
    atomic { if :: alive -> drop(tokens) :: !alive -> goto out fi };
#endif
again:
    atomic { if :: alive -> insert_row(tokens) :: !alive -> goto out fi };
    atomic { if :: budget > 0 -> budget--; goto again :: true fi };    /* committed, the answer lost: once more */
    atomic { /* the drop is not tried again: the sweep finds the record */
        if
        :: alive -> if :: drop(tokens) :: is_cut :: budget > 0 -> budget-- fi; knows = false; line_c = true
        :: !alive -> goto out
        fi };
out:
    skip
}

/* run_number: worker and run of the product in one, so no other claim has it: one worker counts odd numbers, one even. */
proctype worker(byte run_number) {
    byte attempt, begin, at;

idle:
    atomic {
        attempt = 0; begin = 0; at = 0;
        if
        :: entry[1] == WAITS -> attempt = 1
        :: entry[2] == WAITS -> attempt = 2
        :: entry[3] == WAITS -> attempt = 3
#if NUMBERS > 3
        :: entry[4] == WAITS -> attempt = 4
#endif
        fi;
        entry[attempt] = POPPED;
        begin = entry_from[attempt];
        at = begin;
        run_number = run_number + 2
    };
    do
    :: atomic { !lease -> goto idle }                                  /* XADD NOMKSTREAM said nil */
    :: atomic { lease ->
        append_reply(attempt, run_number, begin, at);
        if
        :: at++
        :: budget > 0 -> budget--                                      /* its answer was lost: the message is sent again */
        fi;
        if :: at == TOKENS -> goto idle :: else fi }
    :: atomic { budget > 0 -> budget--; goto idle }                    /* killed, perhaps before its CLAIM */
    :: atomic { lease && budget > 0 -> budget--; append_reply(attempt, run_number, begin, RETURNED); goto idle } /* goes */
    od
}

/* Any live gateway. A record is closed when its gateway is missing, or does not know it. */
proctype sweeper() {
    byte tokens;

idle:
    atomic { tokens = 0;
#ifdef MUTANT_SWEEP_WITHOUT_FENCE
        record != ABSENT
#else
        record != ABSENT && (!lease || !knows)
#endif
    };
#ifndef MUTANT_SWEEP_TAKES_HOLDS
    atomic { if :: record == HELD -> release(); goto idle :: else fi };
#endif
    atomic { /* its row is there: the gateway could not reach Redis */
        if
        :: rows == 1 -> tokens = row_tokens; drop(tokens); goto idle
        :: else
        fi };
    atomic {
        if
        :: record == ABSENT -> goto idle
#ifdef MUTANT_SWEEP_WITHOUT_FENCE
        :: else -> tokens = record_sent                                /* it takes the report and asks nobody */
#else
        :: else -> settle(record_sent, tokens)
#endif
        fi };
    atomic { if :: budget > 0 -> budget--; goto idle :: true fi };     /* this sweeper is killed */
    atomic { insert_row(tokens) };
    atomic { if :: budget > 0 -> budget--; goto idle :: true fi };
    atomic { drop(tokens); goto idle }
}

/* The gateway's process once more, on the same journal. Without F: what the record says, or nothing. */
proctype recovery() {
    byte tokens;

    !alive && !disk_lost && line_a && !line_c;
    atomic {
        if
        :: line_f -> settle(line_f_tokens, tokens)
        :: !line_f -> tokens = 0; if :: record != ABSENT -> settle(record_sent, tokens) :: else fi
        fi };
    atomic { insert_row(tokens) };
    atomic { drop(tokens); line_c = true }
}

proctype lease_expiry() { atomic { !alive && lease -> lease = false } }

/* Redis loses entries and replies. */
inline forget_queue() {
    entry[1] = NEVER; entry[2] = NEVER; entry[3] = NEVER;
#if NUMBERS > 3
    entry[4] = NEVER;
#endif
    do :: nempty(replies) -> replies?_, _, _, _ :: empty(replies) -> break od
}

proctype faults() {
    do
    :: atomic { budget > 0 ->
        if
        :: alive -> budget--; alive = false; gateway_fault = true;                /* kill -9: the sockets close */
            if :: outcome == NONE -> outcome = DROPPED :: else fi;
            if :: disk_lost = true :: true fi                                     /* and its disk may never come back */
        :: lease -> budget--; lease = false; gateway_fault = true                 /* stopped or cut off for too long */
        :: true -> budget--; redis_fault = true;                                  /* Redis wiped */
            if :: record != ABSENT -> record_lost = true :: else fi;
            record = ABSENT; record_sent = 0; record_tokens = 0; held = 0; settled = 0; lease = false;
            forget_queue()
        :: record == SETTLED -> budget--; redis_fault = true;                     /* a failover lost the last settle */
            record = OPEN; held = 1; settled = 0; record_sent = 0
        :: record == OPEN && record_sent == 0 -> budget--; redis_fault = true;    /* .. that it was accepted */
            record = HELD; record_lost = true
        :: line_c && record == ABSENT && alive -> budget--; redis_fault = true; /* .. the last drop */
            record = SETTLED; record_tokens = row_tokens
        :: true -> budget--; redis_fault = true; forget_queue()                   /* .. entries and replies */
        :: entry[1] == POPPED -> budget--; redis_fault = true; entry[1] = WAITS   /* .. a claim or a cancel */
        :: entry[2] == POPPED -> budget--; redis_fault = true; entry[2] = WAITS
        :: entry[3] == POPPED -> budget--; redis_fault = true; entry[3] = WAITS
#if NUMBERS > 3
        :: entry[4] == POPPED -> budget--; redis_fault = true; entry[4] = WAITS
#endif
        :: true -> budget--                                                       /* or this fault never happens */
        fi }
    od
}

/* When nothing can happen any more. */
proctype checker() {
    timeout;
    assert(record == ABSENT && held == 0);                                       /* nothing stays held */
    assert(rows <= 1 && (rows == 0 || counted == row_tokens));                   /* P2 */
    assert(!accepted || outcome != NONE);                                        /* P1, the client */
    assert(!accepted || rows == 1 || (disk_lost && (record_lost || !marked)));   /* P1, the row */
    assert(accepted || rows == 0);                                               /* P1, no row without acceptance */
    assert(row_tokens <= handed);                                                /* P3, never more than handed */
    assert(outcome != COMPLETE || handed == TOKENS);                             /* P1, complete means complete */
    assert(outcome != COMPLETE || row_tokens == TOKENS || (redis_fault && gateway_fault)); /* P3, [DONE] means exact */
    assert(gateway_fault || row_tokens == handed);                               /* P3, exact unless the gateway was lost */
    assert(redis_fault || rows == 0 || row_tokens >= reported);                  /* P3, never below the last report */
    assert(redis_fault || settled == counted)                                    /* Redis and the ledger agree */
}

init {
    atomic {
        alive = true; lease = true;
        forget_queue();
        run owner(); run recovery(); run lease_expiry();
        run worker(1); run worker(2); run sweeper(); run faults(); run checker()
    }
}

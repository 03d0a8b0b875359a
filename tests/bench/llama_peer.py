#!/usr/bin/env python3
"""llama.cpp at its best behind the protocol of engine_bench: commands on stdin, seconds on stdout. llama_peer.py MODEL THREADS

Each figure is measured once with and once without flash attention before the first answer, and the faster of the two answers from then on.
Decoding is llama_decode alone: nothing is sampled.
"""
import ctypes
import os
import sys
import time

import llama_cpp as l

SEQUENCES, PROMPT, PREFILL = 16, 128, 512
model, clock = None, time.monotonic


class Context:
    def __init__(self, flash, n_seqs, n_ctx, threads):
        p = l.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = n_ctx, PREFILL, PREFILL, n_seqs
        p.n_threads = p.n_threads_batch = threads
        p.flash_attn_type = 1 if flash else 0
        p.no_perf = True
        self.c = l.llama_init_from_model(model, p)
        if not self.c:
            raise SystemExit("llama.cpp: no context")
        self.memory = l.llama_get_memory(self.c)
        self.batch = l.llama_batch_init(PREFILL, 0, 1)
        self.n_vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))

    def decode(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, logits
            b.seq_id[i][0] = sequence
        if l.llama_decode(self.c, b):
            raise SystemExit("llama_decode failed")
        l.llama_synchronize(self.c)

    def feed(self, sequence, first, n):
        for at in range(first, first + n, PREFILL):
            size = min(PREFILL, first + n - at)
            self.decode([(token_at(at + i, self.n_vocab), at + i, sequence, at + i == first + n - 1) for i in range(size)])

    def cut(self, sequence, length):
        l.llama_memory_seq_rm(self.memory, sequence, length, -1)


def token_at(i, n_vocab):
    return (i * 2654435761 & 0xFFFFFFFF) % n_vocab


def timed(work):
    """Seconds: of the processor with one thread, of the wall clock with more, as engine_bench."""
    start = clock()
    work()
    return clock() - start


class Peer:
    def __init__(self, threads):
        self.threads, self.wide, self.long, self.faster = threads, {}, {}, {}

    def batched(self, flash):
        """Every sequence holds PROMPT tokens."""
        if flash not in self.wide:
            c = self.wide[flash] = Context(flash, SEQUENCES, SEQUENCES * 512, self.threads)
            c.feed(0, 0, PROMPT)
            for s in range(1, SEQUENCES):
                l.llama_memory_seq_cp(c.memory, 0, s, -1, -1)
        return self.wide[flash]

    def deep(self, flash, depth):
        """A context whose one sequence holds `depth` tokens."""
        if (flash, depth) not in self.long:
            c = self.long[flash, depth] = Context(flash, 1, depth + 2 * PREFILL, self.threads)
            c.feed(0, 0, depth)
        return self.long[flash, depth]

    def measure(self, flash, name, *numbers):
        if name == "prefill":
            c = self.deep(flash, numbers[0])
            seconds = timed(lambda: c.feed(0, numbers[0], PREFILL))
            c.cut(0, numbers[0])
            return seconds
        n, steps = numbers
        c = self.batched(flash)

        def work():
            for k in range(steps):
                c.decode([(k, PROMPT + k, s, 1) for s in range(n)])

        seconds = timed(work)
        for s in range(n):
            c.cut(s, PROMPT)
        return seconds / steps

    def answer(self, name, *numbers):
        key = (name, numbers[0])
        if key not in self.faster:
            self.faster[key] = min((0, 1), key=lambda flash: self.measure(flash, name, *numbers))
        return self.measure(self.faster[key], name, *numbers)


def main(path, threads):
    global model, clock
    if threads == 1:
        clock = time.process_time
    quiet = l.llama_log_callback(lambda level, text, data: None)
    l.llama_log_set(quiet, ctypes.c_void_p(0))
    l.llama_backend_init()
    model = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    peer = Peer(threads)
    print("ready", flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        print(peer.answer(name, *map(int, numbers)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

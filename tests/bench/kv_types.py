#!/usr/bin/env python3
"""The types of the KV cache in turns, one thread, processor time: a step of one and of eight sequences, and 512 tokens of a prompt,
behind DEPTH positions; medians, and each type beside the first.

Usage: kv_types.py ENGINE_BENCH MODEL [--depth N] [--rounds N] [--backends avx512,avx2] [--types f16,q8,bf16,f32]
"""
import argparse
import statistics
import subprocess


class Bench:
    """One engine_bench that answers commands with seconds."""

    def __init__(self, program, model, backend, kv_type):
        self.process = subprocess.Popen([program, model, backend, "1", "-", kv_type], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"engine_bench does not start with {backend} and {kv_type}")

    def seconds(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine_bench")
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", default="avx512,avx2")
    parser.add_argument("--types", default="f16,q8,bf16,f32")
    args = parser.parse_args()
    types = args.types.split(",")
    commands = (f"decode 1 8 {args.depth}", f"decode 8 4 {args.depth}", f"prefill {args.depth}")
    for backend in args.backends.split(","):
        benches = {kv_type: Bench(args.engine_bench, args.model, backend, kv_type) for kv_type in types}
        for command in commands:
            for bench in benches.values():
                bench.seconds(command)  # the prefix is made once
            rounds = [{kv_type: bench.seconds(command) for kv_type, bench in benches.items()} for _ in range(args.rounds)]
            print(f"{backend:7} {command:16}", *(f"{kv_type} {statistics.median(r[kv_type] for r in rounds) * 1e3:.1f} ms "
                  f"({statistics.median(r[kv_type] / r[types[0]] for r in rounds):.2f})" for kv_type in types), sep="  ", flush=True)
        for bench in benches.values():
            bench.process.stdin.close()
            bench.process.wait()


if __name__ == "__main__":
    main()

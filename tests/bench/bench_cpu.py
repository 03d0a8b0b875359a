#!/usr/bin/env python3
"""The engine beside llama.cpp on the same GGUF files: `make bench-cpu`. All stay loaded and take turns, so that what else the machine does
disturbs all; every figure is the median of its alternations and every target holds for the median of the ratios within an alternation.
Our AVX-512 path has llama.cpp built for this machine as its peer, our AVX2 path one that was built without AVX-512 (where this machine has it).
Prints the machine's limits measured in the same minutes, and closes with `below target: N`. Without llama-cpp-python: our figures alone.
"""
import argparse
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
PREFILL = 512
# Asked: (command, what is printed, tokens of one answer)
COMMANDS = (("prefill 0", "prefill 512", PREFILL), ("prefill 4096", "... behind 4,096", PREFILL), ("decode 1 {steps}", "decode, batch 1", 1),
            ("decode 8 {steps}", "decode, batch 8", 8), ("decode 16 {steps}", "decode, batch 16", 16))
PEER, PEER_AVX2 = "llama.cpp", "llama.cpp/avx2"
# Least ratio to the peer in the order of COMMANDS.
SMALL, REAL = (2, 2, 1.1, 3, 2.5), (4, 2, 1.8, 4, 2.5)
MOST_BATCH_8 = 1.3  # a step of 8 sequences beside a step of one, avx512
LEAST_GEMM = 60  # % of the integer peak at 512 rows
LEAST_GEMM_OF = {("avx2", "Q8_0"): 40}
GEMM_TYPES = ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q8_0")


class Engine:
    """A process that answers a command with numbers."""

    def __init__(self, name, argv, log, **env):
        self.name = name
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | env)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name} does not start: {' '.join(map(str, argv))}")

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return [float(v) for v in self.process.stdout.readline().split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Report:
    below = 0

    def check(self, value, bound, most=False):
        good = value <= bound if most else value >= bound
        self.below += not good
        return "" if good else "  BELOW TARGET"


def backends():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return [name for name, flag in (("avx512", "avx512_vnni"), ("avx2", "avx2")) if flag in flags]


def load():
    return pathlib.Path("/proc/loadavg").read_text().split()[0]


def has_peer():
    return importlib.util.find_spec("llama_cpp") is not None


def open_engines(a, model, log):
    engines = [Engine(b, [a.build / "engine_bench", model, b, str(a.threads), "-"], log) for b in backends()]
    peer = [sys.executable, HERE / "llama_peer.py", model, str(a.threads)]
    if has_peer():
        engines.append(Engine(PEER, peer, log))
    if has_peer() and (a.peer_avx2 / "installed").exists():
        engines.append(Engine(PEER_AVX2, peer, log, PYTHONPATH=str(a.peer_avx2)))
    return engines


def is_peer(name):
    return name in (PEER, PEER_AVX2)


def alternate(engines, commands, rounds):
    """{(engine, command): seconds of each round}; each engine's first answer only warms up."""
    times = {}
    for k in range(rounds + 1):
        for command in commands:
            for e in engines if k % 2 else reversed(engines):
                seconds = e.ask(command)[0]
                if k:
                    times.setdefault((e.name, command), []).append(seconds)
    return times


def compare(asked, engines, times, report):
    names = [e.name for e in engines]
    ours = [name for name in names if not is_peer(name)]
    for command, label, tokens, target in asked:
        speed = {e.name: tokens / statistics.median(times[e.name, command]) for e in engines}
        line = f"  {label:18}" + "".join(f"{name} {v:8.1f}  " for name, v in speed.items()) + "tokens/s"
        for name in ours if PEER in names else ():
            peer = PEER_AVX2 if name == "avx2" and PEER_AVX2 in names else PEER
            ratio = statistics.median(p / o for p, o in zip(times[peer, command], times[name, command]))
            line += f"  {name} {ratio:.2f}x (target {target}){report.check(ratio, target)}"
        print(line, flush=True)
    for name in ours:
        one, eight = (times[name, next(c for c, *_ in asked if c.startswith(f"decode {n} "))] for n in (1, 8))
        ratio = statistics.median(b / a for a, b in zip(one, eight))
        print(f"  {name}: a step of 8 costs {ratio:.2f} of a step of 1"
              + (f" (target {MOST_BATCH_8}){report.check(ratio, MOST_BATCH_8, most=True)}" if name == "avx512" else ""), flush=True)


def bench_model(a, title, path, targets, rounds, report):
    steps = 8 if a.smoke else 32
    asked = [(c.format(steps=steps), *rest, target) for (c, *rest), target in zip(COMMANDS, targets) if not (a.smoke and "4096" in c)]
    commands = [c for c, *_ in asked]
    with open(a.build / "bench_cpu.log", "a") as log:
        engines = open_engines(a, path, log)
        print(f"{title}: {rounds} alternations, {a.threads} threads, load {load()}", flush=True)
        limits = {e.name: e.ask("limits") for e in engines if not is_peer(e.name)}
        times = alternate(engines, commands, rounds)
        for name in limits:
            after = next(e for e in engines if e.name == name).ask("limits")
            gops, gbs = (max(v) for v in zip(limits[name], after))
            print(f"  {name} limits: {gops:.0f} GOPS of 8-bit integers, memory read {gbs:.1f} GB/s")
        for e in engines:
            e.close()
    compare(asked, engines, times, report)
    print(f"  load {load()}", flush=True)


def bench_gemm(a, report):
    """GEMM alone at 512 rows on one thread, timed by the processor time it used."""
    out = subprocess.run([a.build / "kernels_bench", "1", "gemm"], capture_output=True, text=True, check=True).stdout
    print(f"GEMM alone, one thread, 512 rows, part of the integer peak; load {load()}")
    for line in out.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[0] in ("avx512", "avx2") and fields[1] in GEMM_TYPES and fields[-1].endswith("%"):
            target = LEAST_GEMM_OF.get((fields[0], fields[1]), LEAST_GEMM)
            percent = float(fields[-1][:-1])
            print(f"  {fields[0]:7}{fields[1]:5} {fields[-2]:>5} GOPS {percent:3.0f}% (target {target}%){report.check(percent, target)}", flush=True)
        elif "limits" in line:
            print("  " + line)


def synthetic(a, shape, kind):
    path = a.models / f"bench-{shape}-{kind}.gguf"
    if not path.exists():
        subprocess.run([sys.executable, HERE / "synthetic_gguf.py", shape, kind, a.models / "qwen3-vocab.gguf", path], check=True)
    return path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-avx2", type=pathlib.Path, default=pathlib.Path("none"), help="where llama-cpp-python without AVX-512 is installed")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--7b", dest="seven", action="store_true")
    parser.add_argument("--only", help="part of the name of the models to measure")
    a = parser.parse_args()
    report, rounds = Report(), 2 if a.smoke else 5
    name = [l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")][0]
    peer = "llama-cpp-python " + importlib.import_module("llama_cpp").__version__ if has_peer() else "nothing: llama-cpp-python is not installed"
    print(f"{name}, {os.cpu_count()} processors; beside {peer}")
    if not a.only:
        bench_gemm(a, report)
    models = [("SmolLM2-135M Q4_1", lambda: a.models / "SmolLM2-135M-Instruct.Q4_1.gguf", REAL)]
    if a.only or not a.smoke:
        kinds = [("0.5b", "q4_0"), ("0.5b", "q4_k_m"), ("0.5b", "q8_0"), ("1.5b", "q4_k_m")] + ([("7b", "q4_0")] if a.seven else [])
        models += [(f"Qwen2.5 {shape} {kind} (random weights)", lambda s=shape, k=kind: synthetic(a, s, k), SMALL) for shape, kind in kinds]
    for title, path, targets in models:
        if not a.only or a.only in title:
            bench_model(a, title, path(), targets, rounds, report)
    print(f"below target: {report.below}")


if __name__ == "__main__":
    main()

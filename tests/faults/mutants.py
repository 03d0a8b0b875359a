"""Planted faults: does the checker see them? Each is built apart, in a copy of the tree under build/mutants, and must fail.

    mutants.py [NAME...]      one line each, then "N passed, N failed, N skipped"; passed: it was caught by the rule named
"""
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from planted import MUTANTS, ROOT, Tree  # noqa: E402


@dataclass
class Plant:
    name: str
    edits: list  # (file, old, new)
    rules: str  # that may catch it
    options: list  # of faults.py
    needs_limits: bool = False


PLANTS = [
    Plant("double-settle", [  # a row that is there already is counted once more
        ("router/usage.c", '" ON CONFLICT (request_id) DO NOTHING"', '" ON CONFLICT (request_id) DO UPDATE SET attempts = usage.attempts"')],
        "P2", ["--only", "commit-without-its-answer", "--seconds", "12"]),
    Plant("ack-before-commit", [  # record and journal forget the row while it is on its way
        ("router/recorder.c", 'failpoint("commit.before"); // H',
         "settle_all(r, batch, n, true);\n        for (int i = 0; i < n; i++)\n            if (batch[i]->segment)\n"
         "                journal_commit(r->j, batch[i]->row.id, batch[i]->segment);")],
        "P1 REST", ["--only", "gateway-killed-before-its-commit", "--seconds", "10"]),
    Plant("fence-ignored", [  # frames of any run are taken as they come; the check of positions alone would hide it
        ("router/request_run.c", "return f->run == q->run && worker == q->worker;", "return worker != 0;"),
        ("router/request_run.c", "if (c->is_last || f->from < c->n) // had it; never repeated (P6)", "if (c->is_last)")],
        "P6 P1 P3", ["--only", "redis-failed-over", "--seconds", "12"]),
    Plant("hold-released-twice", [
        ("router/quota.lua", "if was_open then settle_now(r, KEYS, ARGV) end", "if was_open or is_drop then settle_now(r, KEYS, ARGV) end")],
        "P4 REST", ["--only", "worker-killed", "--seconds", "5"], needs_limits=True),
    Plant("hold-kept", [  # tokens stay held for ever: refused early
        ("router/quota.lua", "s.held_requests - 1, s.held_tokens - held_tokens,", "s.held_requests - 1, s.held_tokens,")],
        "P4", ["--only", "worker-killed", "--seconds", "6"], needs_limits=True),
    Plant("reaper-without-fence", [  # the sweep closes what it finds, whoever lives
        ("router/sweep.c", "(!ask_own(w, record.gateway, tenant, id) && is_long_missing(w, record.gateway)))",
         "ask_own(w, record.gateway, tenant, id) || is_long_missing(w, record.gateway) || true)")],
        "P1 P3", ["--only", "worker-killed", "--seconds", "14"]),
    Plant("newer-superseded", [  # the one that comes ends, not the one that runs
        ("router/request_session.c", "    supersede(r, q->session, q->turn);",
         "    if (*chain_of(r, q->session))\n        q->outcome = OUTCOME_SUPERSEDED;")],
        "P1", ["--only", "worker-killed", "--seconds", "8"]),
    Plant("superseded-goes-on", [
        ("router/request_session.c", "if (q->turn < turn && strcmp(q->session, session) == 0)", "if (q->turn > turn)")],
        "P1", ["--only", "worker-killed", "--seconds", "12"]),
    Plant("superseded-without-row", [
        ("router/usage.c", '"  trace)"\n    " ON CONFLICT', '"  trace) WHERE outcome <> \'superseded\'"\n    " ON CONFLICT')],
        "P1", ["--only", "worker-killed", "--seconds", "8"]),
    Plant("early-end-unflushed", [  # tokens on their way when a request ends early reach the client, and no row
        ("router/request_close.c", "q->events.stop)", "q->events.stop && q->refs < 0)")],
        "P3", ["--matrix", "--only", "deadline in"]),
]


def build(plant):
    """The planted binary."""
    tree = Tree("tree")
    with tree.planted(plant.edits):
        tree.make("build/tiergate")
        binary = MUTANTS / plant.name
        shutil.copy2(tree.path / "build" / "tiergate", binary)
    return binary


def build_other_version():
    """The binary of a version whose function libraries have other names, as when a release changes them."""
    sources = ("router/quota.lua", "router/queue.lua", "router/quota.c", "router/queue.c", "router/library.c")
    texts = [(ROOT / name).read_text() for name in sources]
    edits = [(name, text, re.sub(r"\b(tg|tq|tiergate|tiergate_queue)\d+(?=_|\b)", r"\g<1>99", text)) for name, text in zip(sources, texts)]
    return build(Plant("other-version", edits, "", []))


def try_out(plant, binary):
    command = [sys.executable, Path(__file__).with_name("faults.py"), "--seed", "1", "--rest", "25", "--quiet", "--binary", binary,
               *plant.options]
    out = subprocess.run(command, capture_output=True, text=True)
    (MUTANTS / f"{plant.name}.log").write_text(out.stdout + out.stderr)
    for line in out.stdout.splitlines():
        if m := re.match(r"logs, history and configuration: (/\S+)", line):
            shutil.rmtree(m[1], ignore_errors=True)
    if plant.needs_limits and "applies no limits" in out.stdout:
        return None, "this build applies no limits"
    found = re.findall(r"^VIOLATION ((\w+): .*)$", out.stdout, re.MULTILINE)
    for text, rule in found:
        if rule in plant.rules.split():
            return True, text
    return False, f"not caught: see build/mutants/{plant.name}.log"


def main():
    passed = failed = skipped = 0
    for plant in PLANTS:
        if sys.argv[1:] and plant.name not in sys.argv[1:]:
            continue
        try:
            caught, text = try_out(plant, build(plant))
        except RuntimeError as e:
            caught, text = False, str(e)
        passed, failed, skipped = passed + (caught is True), failed + (caught is False), skipped + (caught is None)
        print(f"{plant.name:22} {'caught' if caught else 'skip:' if caught is None else 'FAILED'} {text[:240]}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(main())

#!/usr/bin/env python3
"""Holds docs/*.md and README.md to the code: every `path` in backticks that looks like a file of the tree exists, every
`name()` is defined somewhere in it, every `make target` and `tiergate command` is one that its help tells, and every relative
link leads to a file; every metric that the code registers is told in
docs/operations.md, and no other. Prints "N passed, N failed, N skipped"."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("\n")
SOURCES = [f for f in FILES if f.endswith((".c", ".h", ".lua", ".py"))]
CODE = "\n".join((ROOT / f).read_text(errors="replace") for f in SOURCES if (ROOT / f).exists())
DEFINED = set(re.findall(r"\b([a-z_][a-z0-9_]*)\(", CODE))
MAKEFILES = "\n".join(f.read_text() for f in [ROOT / "Makefile", *(ROOT / "mk").glob("*.mk")])
WORDS = {"make": re.findall(r"^([a-z-]+%?):.*##", MAKEFILES, re.M),
         "tiergate": re.findall(r"\{\"([a-z-]+)\", command_", (ROOT / "cli/main.c").read_text())}
ROOMS = {f.split("/")[0] for f in FILES if "/" in f}


def claims(text):
    """Yields (kind, what) for everything the page claims about the tree."""
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"[a-z_0-9]+\(\)", span):
            yield "function", span[:-2]
        elif re.fullmatch(r"[A-Za-z_0-9.\-]+(/[A-Za-z_0-9.\-]*)+", span) and span.split("/")[0] in ROOMS:
            yield "path", span
        elif word := re.match(r"(make|tiergate) ([a-z][a-z-]*)", span):
            yield word[1], word[2]
    for program, word in re.findall(r"^(?: {4})?(make|tiergate) ([a-z][a-z-]*) ", text, re.M):
        yield program, word
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            yield "link", link


def holds(kind, what, page):
    if kind == "function":
        return what in DEFINED
    if kind == "link":
        return (page.parent / what).exists()
    if kind in WORDS:
        return any(what == word or (word[-1] == "%" and what.startswith(word[:-1])) for word in WORDS[kind])
    return any(f == what or f.startswith(what.rstrip("/") + "/") for f in FILES)


def metrics():
    """Yields (name, is it told, is it registered)."""
    product = "\n".join((ROOT / f).read_text(errors="replace") for f in SOURCES
                        if f.endswith(".c") and not f.startswith("tests/") and (ROOT / f).exists())
    registered = set(re.findall(r"\bmetric_(?:counter|gauge|histogram)\(\s*\"(\w+)\"", product))
    told = set(re.findall(r"^\| `(tiergate_\w+)` \|", (ROOT / "docs/operations.md").read_text(), re.M))
    for name in sorted(registered | told):
        yield name, name in told, name in registered


def main():
    passed = failed = 0
    for name, is_told, is_registered in metrics():
        if is_told and is_registered:
            passed += 1
        else:
            failed += 1
            print(f"docs/operations.md: metric `{name}` is {'told, but not registered' if is_told else 'not told'}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for kind, what in claims(page.read_text()):
            if holds(kind, what, page):
                passed += 1
            else:
                failed += 1
                print(f"{page.relative_to(ROOT)}: {kind} `{what}` does not exist")
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return failed > 0


sys.exit(main())

#!/usr/bin/env python3
"""Holds every #include of the rooms to the table of who may include whom.

Usage: layers.py [ROOT]   Prints one line per offence; exits with 1 if there is any.
"""
import pathlib
import re
import sys

# Per room: what it may include beside itself. "base" is the whole room (its public headers), "kernels/ops.h" one header.
MAY = {
    "base": [],
    "kernels": ["base"],
    "model": ["base"],
    "engine": ["base", "model", "kernels/ops.h"],
    "auth": ["base"],
    "router": ["base", "model"],
    "worker": ["base", "model", "engine/engine.h",
               "router/queue.h", "router/job.h", "router/reply.h"],
    "server": ["base", "auth", "router", "model"],
    "cli": ["base", "kernels", "model", "engine", "auth", "router", "worker", "server"],
}
# Libraries only base may talk to: Redis, PostgreSQL and HTTP at the wire.
WIRE = re.compile(r"(hiredis|curl|libpq|postgresql)/|(hiredis|async|libpq-fe|libpq-events|curl)\.h$")
SUFFIXES = {".c", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|include_next|import)\b[ \t]*(?:"([^"]*)"|<([^>]*)>|(.*))',
                     re.MULTILINE)
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*', re.DOTALL)


def without_comments(text):
    """Blanks comments, keeping the lines; what looks like one inside a string cannot hide an include."""
    return COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def is_internal(header):
    """A header of a room's own: NAME_internal.h, or one in a folder inside the room."""
    return header.endswith(("_internal.h", "_internal.cuh")) or header.count("/") > 1


def why_not(room, quoted, angled, other):
    """Says what is wrong with one include of a file in `room`, or None."""
    if angled is not None:
        if angled.split("/")[0] in MAY and "/" in angled:
            return f'"{angled}" is ours and stands in angle brackets'
        if room != "base" and WIRE.search(angled):
            return f"only base may include <{angled}>"
        return None
    if quoted is None:
        return f"an include that cannot be read: {other.strip()}"
    if room != "base" and WIRE.search(quoted):
        return f'only base may include "{quoted}"'
    target = quoted.split("/")[0]
    if "/" not in quoted or ".." in quoted.split("/") or target not in MAY:
        return f'"{quoted}" does not name a room'
    if target == room:
        return None
    if is_internal(quoted):
        return f'"{quoted}" is internal to {target}'
    if target not in MAY[room] and quoted not in MAY[room]:
        return f'{room} may not include "{quoted}"'
    return None


def check_file(root, path):
    room = path.relative_to(root).parts[0]
    text = without_comments(path.read_text(encoding="utf-8", errors="replace"))
    for match in INCLUDE.finditer(text):
        why = why_not(room, *match.groups())
        if why:
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(root)}:{line}: {why}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    files = [p for room in MAY for p in sorted((root / room).rglob("*")) if p.suffix in SUFFIXES]
    offences = [line for path in files for line in check_file(root, path)]
    for line in offences:
        print(line)
    print(f"layers: {len(files)} files, {len(offences)} offences")
    return 1 if offences or not files else 0


if __name__ == "__main__":
    sys.exit(main())

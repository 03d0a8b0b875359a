"""Copies of the tree in which faults are planted, so that tests show that they can fail.

A plant is a replacement of text that must occur exactly once: when the code moves on, the plant moves with it or fails.
"""
import contextlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = ROOT / "build" / "mutants"


class Tree:
    """A copy of the sources as they are now and of what was built of them, so that only what a plant touches is compiled again."""

    def __init__(self, name, with_tests=False):
        self.path = MUTANTS / name
        self.path.mkdir(parents=True, exist_ok=True)
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in files.splitlines():
            if (ROOT / file).is_file() and (with_tests or not file.startswith("tests/")):
                self.copy(file)
        for part in ("obj", "lib", "gen"):
            if (ROOT / "build" / part).is_dir() and not (self.path / "build" / part).is_dir():
                shutil.copytree(ROOT / "build" / part, self.path / "build" / part)

    def copy(self, file):
        source, copy = ROOT / file, self.path / file
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
        elif copy.read_bytes() != source.read_bytes():
            shutil.copy(source, copy)  # with a new time: what was built of the old text is older

    @contextlib.contextmanager
    def planted(self, edits):
        """The tree with edits, (file, old, new) each; afterwards as it was."""
        try:
            for file, old, new in edits:
                text = (self.path / file).read_text()
                if text.count(old) != 1:
                    raise RuntimeError(f"{file} has {text.count(old)} times: {old}")
                (self.path / file).write_text(text.replace(old, new))
            yield
        finally:
            for file in {file for file, _, _ in edits}:
                shutil.copy(ROOT / file, self.path / file)  # with a new time: it is compiled again

    def make(self, *targets):
        made = subprocess.run(["make", "-s", "-C", self.path, *targets], capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(made.stderr[-2000:])

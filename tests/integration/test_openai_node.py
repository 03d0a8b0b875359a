"""Runs openai_node.mjs: openai-node against the same installation."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def test_openai_node_works_unchanged(gateway, tmp_path):
    packages = Path(os.environ.get("TIERGATE_NODE_MODULES", HERE.parent / "node_modules")).resolve()
    if not shutil.which("node") or not (packages / "openai").is_dir():
        pytest.skip("node or its package openai is not installed")
    script = tmp_path / "openai_node.mjs"  # modules are looked for beside the script
    script.write_text((HERE / "openai_node.mjs").read_text())
    (tmp_path / "node_modules").symlink_to(packages)
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps(gateway.ready))
    run = subprocess.run(["node", "--test", script], capture_output=True, text=True, timeout=300,
                         env=os.environ | {"TIERGATE_READY": str(ready), "NODE_EXTRA_CA_CERTS": gateway.ready["ca_file"]})
    assert run.returncode == 0, run.stdout + run.stderr

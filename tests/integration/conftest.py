"""A running installation for the tests: `gateway` is shared by all, `install` makes more.

TIERGATE_READY names the ready file of one that runs; otherwise one is started here (`tiergate up` in a directory of
its own, ports chosen by the kernel, the model of TIERGATE_TEST_MODEL) and ended with Ctrl-C: it must leave nothing.
"""
import json
import os
import tempfile
from pathlib import Path

import pytest

from installation import MODEL_FILE, Gateway, Installation


@pytest.fixture(scope="session")
def model_file():
    if not Path(MODEL_FILE).is_file():
        pytest.skip(f"no model file {MODEL_FILE} (make model-file)")
    return MODEL_FILE


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    given = os.environ.get("TIERGATE_READY")
    if given:
        yield Gateway(json.loads(Path(given).read_text()))
        return
    if not Path(MODEL_FILE).is_file():
        pytest.skip(f"no model file {MODEL_FILE} (make model-file)")
    installation = Installation(tmp_path_factory.mktemp("shared")).start()
    os.environ["TIERGATE_READY"] = str(installation.ready_file)  # for tests that start other programs
    yield installation.gateway()
    del os.environ["TIERGATE_READY"]
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


@pytest.fixture
def install(model_file):
    """Makes installations that are gone after the test."""
    made = []
    with tempfile.TemporaryDirectory(prefix="tiergate-it-", ignore_cleanup_errors=True) as directory:
        def make(*options, **more):
            made.append(Installation(Path(directory) / str(len(made)), *options, **more))
            return made[-1]
        yield make
        for installation in made:
            installation.kill()


@pytest.fixture(scope="session")
def client(gateway):
    return gateway.client()


@pytest.fixture(scope="session")
def model(gateway):
    return gateway.model

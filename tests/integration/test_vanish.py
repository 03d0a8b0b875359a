"""What clients that vanish in the middle of their streams cost: the figures of vanish.py, with fewer clients."""
import pytest

import vanish
from installation import Installation

N = 100


@pytest.fixture(scope="module")
def home(model_file, tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("vanish"), *vanish.options(N)).start()
    yield installation
    try:
        assert installation.stop() == 0, installation.said()
    finally:
        installation.kill()


def test_clients_that_vanish_cost_at_most_one_step_each_and_hold_nothing(home):
    found = vanish.run(home, N)
    assert {x["row"]["outcome"] for x in found} == {"client_gone"}
    for x in found:
        assert x["after_seen"] <= 1, x
        assert x["received"] <= x["row"]["completion_tokens"] <= x["made"], x
    assert vanish.is_free(home.gateway().held())

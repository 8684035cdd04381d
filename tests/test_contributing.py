"""What CONTRIBUTING shows runs as it stands, and gives what is known."""

import pathlib
import re

import jax
import numpy as np

TEXT = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
GAME, STAGES = re.findall(r"<!-- tested -->\n```python\n(.*?)```", TEXT, re.DOTALL)


def run(code):
    namespace = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    return namespace


def test_examples_are_short():
    for code in (GAME, STAGES):
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 20


def test_each_player_descends_by_its_own_optimizer():
    # x' = x - 0.1 y and y' = y + 0.2 x, at the same time, from (1, 0).
    params = run(GAME)["played"].meta_params
    np.testing.assert_allclose(params["player"], 0.98, rtol=1e-6)
    np.testing.assert_allclose(params["adversary"], 0.4, rtol=1e-6)


def test_the_second_stage_starts_where_the_first_ended():
    found = run(STAGES)
    learner, key = found["second"], jax.random.key(0)
    start = learner.init(key, found["tasks"](key))
    first = found["first"].meta_params.embedding
    assert jax.tree.all(jax.tree.map(np.array_equal, start, first))
    assert not np.array_equal(
        found["result"].meta_params["params"]["head"]["kernel"],
        first["params"]["head"]["kernel"],
    )

"""Every learner that takes an inner optimizer names it where it is none."""

import inspect

import optax
import pytest

import metajax
from metajax.command_line.catalogue import LEARNERS, takes
from metajax.inner.learned_optimizer import LearnedOptimizer

NEEDED = {"way": 2, "num_classes": 3, "inner_steps": 1}
THOSE = [name for name in LEARNERS if takes(LEARNERS[name], "inner_optimizer")]


@pytest.mark.parametrize("wrong", [0.1, "adam", optax.sgd])
@pytest.mark.parametrize("name", THOSE)
def test_what_is_no_optimizer_is_named(name, wrong):
    parameters = inspect.signature(LEARNERS[name]).parameters
    given = {k: v for k, v in NEEDED.items() if k in parameters}
    if "model" in parameters:
        given["model"] = metajax.models.mlp(2)
    with pytest.raises(TypeError, match="`inner_optimizer` must be an? "):
        LEARNERS[name](inner_optimizer=wrong, **given)


def test_there_are_such_learners():
    assert {"maml", "reptile", "baseline", "tim", "soft_tree"} <= set(THOSE)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            LearnedOptimizer("abc", optax.sgd),
            r"`init` must be a function of \(key, par",
        ),
        (LearnedOptimizer(lambda key, params: (), 1), r"`build` must be a function of"),
    ],
)
def test_learned_optimizers_are_of_two_functions(optimizer, message):
    with pytest.raises(ValueError, match=message):
        metajax.learners.maml(metajax.models.mlp(1), optimizer, inner_steps=1)

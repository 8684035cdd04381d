import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from metajax.compute.bound_programs import bound_jit
from metajax.evaluation.bank import evaluate
from metajax.learners.metric.prototypical import prototypical
from metajax.models.networks import mlp
from metajax.types import Examples, Task


class Scale:
    def __init__(self, by):
        self.by = by


def scaled(scale, x):
    return scale.by * x


def blobs(key):
    """Two classes of points."""
    x = jax.random.normal(key, (4, 2)) + 5 * jnp.arange(4)[:, None]
    y = jnp.array([0, 0, 1, 1])
    return Task(Examples(x, y), Examples(x, y))


def ask_for_others(count):
    for number in range(count):
        np.testing.assert_allclose(bound_jit(scaled, Scale(number))(2.0), 2 * number)
    gc.collect()


def test_the_same_is_asked_for_again():
    scale = Scale(3)
    assert bound_jit(scaled, scale) is bound_jit(scaled, scale)
    assert bound_jit(scaled, scale) is not bound_jit(scaled, Scale(3))


def test_what_was_bound_is_let_go():
    scale = Scale(3)
    np.testing.assert_allclose(bound_jit(scaled, scale)(2.0), 6)
    scale = weakref.ref(scale)
    ask_for_others(60)
    assert scale() is not None
    ask_for_others(10)
    assert scale() is None


def test_learners_and_tasks_that_were_evaluated_are_let_go():
    def tasks(key):
        return blobs(key)

    learner = prototypical(mlp(2, hidden_sizes=(3,)))
    params = learner.init(jax.random.key(0), blobs(jax.random.key(0)))
    evaluate(learner, params, tasks, num_tasks=3)
    refs = [weakref.ref(part) for part in (learner.adapt, learner.predict, tasks)]
    del learner, tasks
    ask_for_others(64)
    assert [ref() for ref in refs] == [None, None, None]

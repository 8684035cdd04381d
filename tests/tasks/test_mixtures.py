"""Mixtures: proportions, tasks of their domains, padding, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.masks import masked_mean
from metajax.tasks.mixtures import mixture
from metajax.types import Examples, Task


def constant(value, *, support=3, query=2, shape=(2,), mask=False, dtype=jnp.float32):
    """Tasks in which every input is the value plus noise that tells keys apart."""

    def sample(key):
        noise = 0.1 * jax.random.uniform(key)

        def examples(num):
            x = jnp.full((num, *shape), value + noise, dtype)
            real = jnp.arange(num) < num - 1 if mask else None
            return Examples(x, jnp.arange(num), real)

        return Task(examples(support), examples(query))

    return sample


@functools.partial(jax.jit, static_argnums=2)
def draw(tasks, key, num):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: (tasks(key), tasks.domain(key)))(keys)


@pytest.mark.parametrize("weights", [None, (0.2, 0.5, 0.3), (0.0, 1.0, 0.0)])
def test_domains_come_in_proportion(key, weights):
    num = 3_000
    tasks = mixture([constant(1.0), constant(2.0), constant(3.0)], weights)
    task, domain = draw(tasks, key, num)
    assert task.support.mask is None
    np.testing.assert_array_equal(np.floor(task.support.x[:, 0, 0]), domain + 1)
    chances = np.full(3, 1 / 3) if weights is None else np.array(weights)
    shares = np.bincount(domain, minlength=3) / num
    error = np.sqrt(chances * (1 - chances) / num)
    assert np.all(np.abs(shares - chances) <= 4.5 * error)


def test_a_task_is_its_domains_own_whatever_the_batch(key):
    domains = [constant(1.0), constant(2.0)]
    tasks = mixture(domains)
    batch, domain = draw(tasks, key, 4)
    assert len(set(np.asarray(domain).tolist())) == 2
    for i, one in enumerate(jax.random.split(key, 4)):
        alone = tasks(one)
        own = domains[int(domain[i])](jax.random.split(one)[1])
        for expected in (alone, own):
            jax.tree.map(
                lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6),
                batch,
                expected,
            )


def test_other_domains_are_not_drawn_in_a_batch(key):
    tasks = mixture([constant(1.0), constant(2.0)])
    keys = jax.random.split(key, 4)
    program = jax.jit(jax.vmap(tasks)).lower(keys).compile().as_text()
    assert "conditional" in program


@pytest.mark.parametrize("mask", [False, True])
def test_sets_are_padded_to_the_largest(key, mask):
    tasks = mixture([constant(1.0, support=4, mask=mask), constant(2.0, query=5)])
    task, domain = draw(tasks, key, 8)
    assert task.support.x.shape == (8, 4, 2)
    assert task.query.x.shape == (8, 5, 2)
    first = np.asarray(domain) == 0
    rows = {
        "support": np.where(first, 4 - mask, 3),
        "query": np.where(first, 2 - mask, 5),
    }
    for part, num in rows.items():
        examples = getattr(task, part)
        np.testing.assert_array_equal(examples.mask.sum(axis=1), num)
        mean = jax.vmap(masked_mean)(examples.x[..., 0], examples.mask)
        np.testing.assert_array_equal(np.floor(mean), domain + 1)


def test_only_one_set_may_need_padding(key):
    task = mixture([constant(1.0), constant(2.0, query=5)])(key)
    assert task.support.mask is None
    assert task.query.mask.shape == (5,)


def test_trains_on_several_domains():
    learner = metajax.learners.prototypical(
        metajax.models.mlp(2, hidden_sizes=()), way=3
    )
    result = metajax.train(
        learner,
        mixture([constant(1.0), constant(2.0, support=2)]),
        optax.sgd(0.1),
        steps=2,
        tasks_per_step=2,
        progress=False,
    )
    assert np.isfinite(result.history[-1]["loss"])


def state_task(key):
    return Task({"goal": key}, constant(1.0)(key).query)


BAD = {
    "nothing": ({"tasks": []}, "at least one distribution, got none"),
    "no list": (
        {"tasks": metajax.tasks.sinusoid()},
        "a list of at least one .* got Sinusoid",
    ),
    "no function": ({"tasks": [constant(1.0), 7]}, "number 1 is a int"),
    "other shapes": (
        {"tasks": [constant(1.0), constant(1.0, shape=(3,))]},
        r"of distribution 0 has float32 \[2\], int32 \[\] and that of distribution 1 "
        r"has float32 \[3\], int32 \[\]. Bring images to one size",
    ),
    "other types": (
        {"tasks": [constant(1.0), constant(1.0, dtype=jnp.bfloat16)]},
        r"distribution 1 has bfloat16 \[2\]",
    ),
    "no examples": (
        {"tasks": [constant(1.0), state_task]},
        "the support of distribution 1 is a dict",
    ),
    "too few weights": ({"weights": [1.0]}, "each of the 2 distributions, got 1"),
    "a negative weight": (
        {"weights": [1.5, -0.5]},
        r"at least 0 with a sum of 1, got \[1.5, -0.5\]; divide them",
    ),
    "another sum": ({"weights": [0.5, 0.6]}, r"sum of 1, got \[0.5, 0.6\]"),
    "NaN": ({"weights": [float("nan"), 1.0]}, r"sum of 1, got \[nan, 1.0\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    arguments = {"tasks": [constant(1.0), constant(2.0)]} | changes
    with pytest.raises(ValueError, match=message):
        mixture(**arguments)

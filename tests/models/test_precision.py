import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.learners.gradient.maml import maml
from metajax.models.networks import mlp
from metajax.models.normalization import calibrate
from metajax.models.precision import with_precision
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.few_shot import few_shot

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 4, 4, 1), np.uint8)
TASKS = few_shot(class_table(IMAGES), way=3, shot=2, num_queries=4)


def make(precision, normalization="layer"):
    return mlp(
        3, hidden_sizes=(16, 16), normalization=normalization, precision=precision
    )


def learner_of(precision, gradient="remat"):
    inner = optax.sgd(0.2, momentum=0.9)
    return maml(make(precision), inner, inner_steps=3, gradient=gradient)


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def products(fn, *args):
    """The types of all matrix products in a program."""
    text = str(jax.make_jaxpr(fn)(*args))
    lines = [line for line in text.splitlines() if "= dot_general[" in line]
    return {line.split(":")[1].split("[")[0] for line in lines}


def test_products_are_in_half_precision_and_parameters_are_not(key):
    task = TASKS(key)
    half, full = learner_of("bfloat16"), learner_of("float32")
    params = half.init(key, task)
    for learner, dtype in ((half, "bf16"), (full, "f32")):
        step = jax.jit(jax.grad(lambda p, one=learner: one.loss(p, task)[0]))
        assert products(step, params) == {dtype}
        adapted = jax.jit(learner.adapt)(params, task.support)
        for tree in (params, adapted, step(params)):
            assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32"}
        assert learner.predict(adapted, task.query.x).dtype == jnp.float32
        assert learner.loss(params, task)[0].dtype == jnp.float32


@pytest.mark.parametrize("gradient", ["reverse", "remat", "mixed", "first_order"])
def test_gradient_points_the_same_way(key, gradient):
    task = TASKS(key)
    params = learner_of("float32").init(key, task)

    def gradient_of(precision):
        learner = learner_of(precision, gradient)
        return flat(jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params))

    half, full = gradient_of("bfloat16"), gradient_of("float32")
    cosine = half @ full / jnp.linalg.norm(half) / jnp.linalg.norm(full)
    assert 0.99 < cosine < 0.9999999  # near, and not the same program


def test_frozen_statistics_stay_in_full_precision(key):
    half, full = (make(p, "calibrated") for p in ("bfloat16", "float32"))
    task = TASKS(key)
    params = full.init(key, task.support.x)
    frozen = calibrate(half, params, TASKS, key, num_tasks=20)
    expected = calibrate(full, params, TASKS, key, num_tasks=20)
    for got, wanted in zip(
        jax.tree.leaves(frozen), jax.tree.leaves(expected), strict=True
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=0.05, atol=0.02)
    # The next numbers to 256.75 that bfloat16 has are 256 and 258.
    values = {"mean": 256.75, "variance": 1.0, "bias": 256.0}
    crafted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.full_like(leaf, values[path[-1].key])
            if "Normalize" in jax.tree_util.keystr(path) and path[-1].key in values
            else leaf
        ),
        frozen,
    )
    x = 10 * task.query.x
    np.testing.assert_allclose(
        half.apply(crafted, x), full.apply(crafted, x), rtol=0.1, atol=0.1
    )


def test_float32_changes_nothing():
    model = make("float32")
    assert with_precision(model, "float32") is model


def test_float16_is_refused():
    message = "`precision` must be one of float32, bfloat16, got 'float16'"
    with pytest.raises(ValueError, match=message):
        with_precision(make("float32"), "float16")
    with pytest.raises(ValueError, match=message):
        make("float16")

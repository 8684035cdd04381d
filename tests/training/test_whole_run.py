import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import DIM, quadratic, sample

from metajax.training.trainer import train
from metajax.training.whole_run import whole_run

SEEDS = (3, 8)
SIZES = {"steps": 12, "tasks_per_step": 4, "num_validation_tasks": 30}


def make(rate):
    return quadratic(noise=0.1), optax.adam(rate)


def history(result, kind, name):
    return [record[name] for record in result.history if record["kind"] == kind]


@pytest.fixture(scope="module")
def runs():
    run = whole_run(make, sample, validation=sample, validate_every=4, **SIZES)
    keys = jax.vmap(jax.random.key)(jnp.array(SEEDS))
    rates = jnp.array([0.1, 0.02])
    return jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, rates)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("rate", "value"), [(0, 0.1), (1, 0.02)])
def test_runs_side_by_side_are_those_of_train(runs, seed, rate, value):
    learner, optimizer = make(value)
    expected = train(
        learner,
        sample,
        optimizer,
        seed=SEEDS[seed],
        validation=sample,
        validate_every=4,
        log_every=1,
        progress=False,
        **SIZES,
    )
    got = jax.tree.map(lambda x: x[seed, rate], runs)
    chex.assert_trees_all_close(got.meta_params, expected.meta_params, rtol=1e-5)
    for name in ("loss", "gradient_norm", "distance"):
        wanted = history(expected, "train", name)
        np.testing.assert_allclose(got.training[name], wanted, rtol=1e-5)
    wanted = history(expected, "validation", "mse")[1:]  # it has one before step 0
    np.testing.assert_allclose(got.validation["mse"], wanted, rtol=1e-5)


def test_without_validation():
    result = jax.jit(whole_run(lambda hyper: make(0.1), sample, **SIZES))(
        jax.random.key(0)
    )
    assert result.validation == {}
    assert result.training["loss"].shape == (12,)
    assert bool(jnp.all(result.training["is_finite"]))


def test_gradients_pass_through_a_whole_run():
    """The derivative of the last loss by the outer rate, against differences."""

    def last_loss(rate):
        run = whole_run(lambda rate: (quadratic(), optax.sgd(rate)), sample, **SIZES)
        return run(jax.random.key(0), rate).training["loss"][-1]

    got = jax.jit(jax.grad(last_loss))(0.3)
    step = 1e-2
    wanted = (last_loss(0.3 + step) - last_loss(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(got, wanted, rtol=0.02)


def test_what_is_not_finite_is_not_taken():
    def sometimes_infinite(key):
        task = sample(key)
        is_bad = jax.random.uniform(jax.random.fold_in(key, 1)) < 0.05
        y = jnp.where(is_bad, jnp.inf, task.query.y)
        return task._replace(query=task.query._replace(y=y))

    run = whole_run(lambda hyper: make(0.1), sometimes_infinite, **SIZES)
    result = jax.jit(run)(jax.random.key(0))
    taken = np.asarray(result.training["is_finite"])
    assert 0 < taken.sum() < 12
    assert np.all(np.isfinite(result.meta_params["theta"]))
    assert result.meta_params["theta"].shape == (DIM,)
    np.testing.assert_array_equal(np.isfinite(result.training["loss"]), taken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be an integer of at least 1, got 0"),
        (
            {"tasks_per_step": -1},
            "`tasks_per_step` must be .* at least 1, got -1",
        ),
        (
            {"validate_every": 0},
            "`validate_every` must be .* at least 1, got 0",
        ),
        ({"num_validation_tasks": 0}, "`num_validation_tasks` must be .*, got 0"),
        ({"validate_every": 5}, "`validate_every` must divide `steps` = 12, got 5"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        whole_run(make, sample, **SIZES | changes)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (
            quadratic(),
            ValueError,
            r"`make` must return `\(learner, optimizer\)`, got L",
        ),
        (optax.sgd(0.1), ValueError, r"`make` must return .*got GradientTransf"),
        ((quadratic(), optax.sgd), TypeError, "`optimizer` must be an Optax optimizer"),
        ((3, optax.sgd(0.1)), TypeError, "`learner` must be a `metajax.Learner`"),
        (
            (quadratic()._replace(loss=lambda params, task: 0), optax.sgd(0.1)),
            ValueError,
            r"`Learner.loss` is called as `loss\(meta_params, task, \*, key=None\)`",
        ),
    ],
)
def test_what_make_gives_is_checked(made, error, message):
    run = whole_run(lambda hyper: made, sample, **SIZES)
    with pytest.raises(error, match=message):
        run(jax.random.key(0))


def test_what_is_no_distribution_or_make_is_named():
    with pytest.raises(ValueError, match=r"`make` must be a function of \(hyper\)"):
        whole_run((quadratic(), optax.sgd(0.1)), sample, **SIZES)
    with pytest.raises(ValueError, match=r"`tasks` must be a function of \(key\)"):
        whole_run(make, 3, **SIZES)
    with pytest.raises(ValueError, match=r"`validation` must be a function of \(key"):
        whole_run(make, sample, validation=3, **SIZES)

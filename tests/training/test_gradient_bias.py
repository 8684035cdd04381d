"""Comparison of gradient estimators: known angles, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.objectives import squared_error
from metajax.plots import plot_gradients
from metajax.training.gradient_bias import Candidate, candidates, compare_gradients
from metajax.training.outer_gradients import evolution_strategies
from metajax.types import Examples, OuterGradient, Task

NUM_TASKS = 4


def sample(key):
    """Targets in the plane; nothing depends on the inputs."""
    support, query = jax.random.normal(key, (2, 1, 2))
    x = jnp.zeros((1, 1))
    return Task(Examples(x, support), Examples(x, query))


def make(gradient, rate=0.5, steps=4):
    model = metajax.models.from_functions(
        lambda key, x: jnp.zeros(2),
        lambda params, x: jnp.broadcast_to(params[None, :], (len(x), 2)),
    )
    return metajax.learners.maml(
        model,
        optax.sgd(rate),
        inner_steps=steps,
        objective=squared_error,
        gradient=gradient,
    )


THETA = jnp.array([1.0, -2.0])


def rows_of(found, **arguments):
    comparison = compare_gradients(
        found, THETA, sample, num_tasks=NUM_TASKS, **arguments
    )
    return comparison, {row.name: row for row in comparison.rows}


def test_first_order_has_the_right_angle_and_length():
    """On this quadratic its gradient is (1 - rate)^-steps times the exact one."""
    _, rows = rows_of(candidates(make, num_tasks=NUM_TASKS), repeats=2)
    assert list(rows) == ["exact", "first order", "ES", "truncated", "PES"]
    assert rows["exact"].cosine == pytest.approx(1, abs=1e-6)
    assert rows["exact"].norm == pytest.approx(1, abs=1e-6)
    assert rows["first order"].cosine == pytest.approx(1, abs=1e-5)
    assert rows["first order"].norm == pytest.approx(2**4, rel=1e-5)
    # No piece but the first sees the initialisation, and the loss comes at the end.
    assert rows["truncated"].norm == 0
    assert rows["truncated"].cosine == 0
    for row in rows.values():
        assert row.seconds > 0
        assert row.memory > 0


def test_more_pairs_bring_evolution_strategies_closer():
    found = {
        "exact": Candidate(make("remat")),
        "few": Candidate(make("remat"), evolution_strategies(num_pairs=1)),
        "many": Candidate(make("remat"), evolution_strategies(num_pairs=100)),
    }
    _, rows = rows_of(found, repeats=20)
    assert rows["many"].cosine > rows["few"].cosine
    assert rows["many"].cosine > 0.97
    assert rows["many"].cosine_half_width < rows["few"].cosine_half_width


def test_a_wrong_gradient_is_seen():
    def gradient(loss, meta_params, tasks, keys, state):
        return jnp.flip(meta_params), jnp.zeros(()), {}, state

    wrong = OuterGradient(lambda key, meta_params, task: (), gradient)
    found = {
        "exact": Candidate(make("remat")),
        "wrong": Candidate(make("remat"), wrong),
    }
    _, rows = rows_of(found, repeats=2)
    exact = jax.grad(
        lambda theta: jnp.mean(
            jax.vmap(lambda task: make("remat").loss(theta, task)[0])(
                jax.vmap(sample)(
                    jax.random.split(jax.random.split(jax.random.key(0))[0], NUM_TASKS)
                )
            )
        )
    )(THETA)
    answer = np.flip(np.asarray(THETA))
    expected = answer @ exact / np.linalg.norm(answer) / np.linalg.norm(exact)
    assert rows["wrong"].cosine == pytest.approx(float(expected), abs=1e-5)


def test_without_pieces_there_are_fewer_candidates():
    whole = lambda gradient: make(gradient, steps=1)  # noqa: E731
    assert list(candidates(whole, num_tasks=2)) == ["exact", "first order", "ES"]
    none = lambda gradient: make(gradient)._replace(segments=None)  # noqa: E731
    assert list(candidates(none, num_tasks=2)) == ["exact", "first order", "ES"]


def test_it_is_shown_and_drawn(tmp_path):
    comparison, _ = rows_of(candidates(make, num_tasks=NUM_TASKS), repeats=2)
    text = str(comparison)
    assert "compared with 'exact', 4 tasks a step, 2 estimates each" in text
    assert "first order" in text
    assert comparison.to_json()["rows"][1]["name"] == "first order"
    plot_gradients(tmp_path / "gradients.png", comparison)
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


ERRORS = {
    "reference": ({"reference": "truth"}, "one of the candidates, .*'exact'.*'truth'"),
    "repeats": ({"repeats": 1}, "`repeats` must be an integer of at least 2, got 1"),
    "num_tasks": ({"num_tasks": 0}, "`num_tasks` must be .* got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_explained(name):
    changes, message = ERRORS[name]
    arguments = {"num_tasks": 2} | changes
    found = {"exact": Candidate(make("remat"))}
    with pytest.raises(ValueError, match=message):
        compare_gradients(found, THETA, sample, **arguments)


def test_a_gradient_of_zero_cannot_be_a_reference():
    found = {"exact": Candidate(make("remat", rate=1.0))}
    with pytest.raises(ValueError, match="has the norm 0.0"):
        compare_gradients(found, THETA, sample, num_tasks=2, repeats=2)

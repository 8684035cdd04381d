"""Runs from its settings to a JSON file, and its part of the page."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import prior_fitted, results_page


def test_prior_fitted(tmp_path, monkeypatch):
    """On a table that any of them can learn, but not in one step."""
    x = np.random.default_rng(0).normal(size=(260, 3))
    names = ("a", "b", "c"), ("0", "1"), "easy"
    table = metajax.tasks.tables.tables.Table(x, (x[:, 0] > 0).astype(int), *names)
    wide = metajax.tasks.tables.tables.Table(
        np.zeros((260, 40)), table.y, tuple(map(str, range(40))), *names[1:]
    )
    small = metajax.tasks.tables.tables.Table(x[:200], table.y[:200], *names)
    assert prior_fitted.usable([wide, small, table]) == [table]
    monkeypatch.setattr(prior_fitted, "read_tables", lambda count: [table, table])
    monkeypatch.setattr(prior_fitted, "usable", lambda tables: tables)
    settings = prior_fitted.Settings(
        size=8,
        layers=1,
        outer_steps=1,
        tasks_per_step=1,
        tasks_per_table=2,
        num_orders=2,
    )
    prior_fitted.main(settings)
    rows = {r["method"]: r for r in read_result(tmp_path)["results"]}
    assert rows["logistic regression"]["mean"] > 0.9
    assert rows["logistic regression"]["mean_rank"] < rows["prior-fitted"]["mean_rank"]
    higher = rows["logistic regression"]["prior_fitted_is_higher_by"]["mean"]
    difference = rows["prior-fitted"]["mean"] - rows["logistic regression"]["mean"]
    assert higher == pytest.approx(difference)
    assert "| random forest |" in results_page.page(tmp_path / "results")


def test_prior_fitted_undoes_the_names_of_classes(key):
    """A learner that says what it read: any order of names gives the same answer."""

    def predict(adapted, inputs, **_):
        return jnp.broadcast_to(10.0 * adapted[None], (len(inputs), adapted.size))

    def adapt(meta_params, support, **_):
        # Columns and classes that the table lacks must stay where they are.
        is_usual = jnp.all(support.x[:, 2:] == 0) & jnp.all(support.y < 4)
        counts = jnp.mean(jax.nn.one_hot(support.y, prior_fitted.WAY), axis=0)
        return counts * is_usual

    learner = metajax.Learner(None, adapt, predict, None)
    x = jnp.zeros((6, prior_fitted.COLUMNS)).at[:, :2].set(5.0)
    support = metajax.Examples(x, jnp.asarray([3, 3, 3, 3, 1, 0]))
    task = metajax.Task(support, support)
    for orders in (1, 3):
        found = prior_fitted.ask(learner, orders, (), task, (2, 4), key)
        np.testing.assert_array_equal(found, 3)


def test_prior_fitted_knows_the_matrices_of_its_layers(key):
    tasks = metajax.tasks.tabular_prior(rows=5, columns=prior_fitted.COLUMNS)
    learner = prior_fitted.build(prior_fitted.Settings(size=8, layers=2))
    meta_params = learner.init(key, tasks(key))
    axes = jax.tree.leaves(
        prior_fitted.matrices(meta_params),
        is_leaf=lambda leaf: leaf is None or hasattr(leaf, "reduction_axis"),
    )
    leaves = jax.tree.leaves(meta_params)
    found = [(x.shape, *a) for x, a in zip(leaves, axes, strict=True) if a]
    of_layer = {
        ((8, 3, 4, 2), (0,), (1, 2, 3)),
        ((4, 2, 8), (0, 1), (2,)),
        ((8, 32), (0,), (1,)),
        ((32, 8), (0,), (1,)),
    }
    assert set(found) == of_layer
    assert len(found) == 2 * len(of_layer)


def test_prior_fitted_takes_all_orders(key):
    found = jax.vmap(lambda k: prior_fitted._shuffled(k, 5, 3))(
        jax.random.split(key, 200)
    )
    orders = {tuple(order) for order in np.asarray(found)}
    assert orders == {(*o, 3, 4) for o in itertools.permutations(range(3))}

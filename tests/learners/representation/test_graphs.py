"""Learners on graphs: label propagation in NumPy, the graph network's symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.learners.representation.label_propagation import propagate

ENTRIES = {
    "label_propagation": Entry(
        lambda: metajax.learners.label_propagation(small_mlp(5), way=4, alpha=0.9),
        is_inductive=False,
    ),
    "graph": Entry(
        lambda: metajax.learners.graph(
            small_mlp(5), way=WAY, features=4, edge_features=4
        ),
        uses_labels_untrained=False,
    ),
}


def dense_propagation(nodes, labels, neighbors, alpha):
    """Zhou et al. 2004 with the paper's graph, one entry after the other."""
    num = len(nodes)
    weights = np.zeros((num, num))
    for i in range(num):
        for j in range(num):
            if i != j:
                weights[i, j] = np.exp(-np.sum((nodes[i] - nodes[j]) ** 2) / 2)
    kept = np.zeros((num, num), bool)
    for i in range(num):
        for j in np.argsort(-weights[i])[:neighbors]:
            kept[i, j] = kept[j, i] = True
    weights = np.where(kept, weights, 0)
    degrees = weights.sum(1)
    smooth = weights / np.sqrt(degrees[:, None] * degrees[None])
    return np.linalg.inv(np.eye(num) - alpha * smooth) @ labels


@pytest.mark.parametrize("neighbors", [2, 20])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_labels_spread_as_in_numpy(neighbors, alpha):
    generator = np.random.default_rng(0)
    nodes, labels = generator.normal(size=(9, 2)), np.zeros((9, 3))
    labels[range(3), range(3)] = 1
    expected = dense_propagation(nodes, labels, neighbors, alpha)
    arrays = jnp.array(nodes), jnp.array(labels), jnp.ones(9, bool)
    got = propagate(*arrays, neighbors=neighbors, alpha=alpha)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_queries_are_answered_together(key):
    """A query nearer to the second label, but led to the first by another query."""
    nodes = jnp.array([[0.0], [9.0], [2.5], [5.0]])
    labels = jnp.array([[1.0, 0], [0, 1.0], [0, 0], [0, 0]])
    real = jnp.ones(4, bool)
    spread = propagate(nodes, labels, real, neighbors=3, alpha=0.9)
    assert spread[3, 0] > spread[3, 1]
    alone = propagate(nodes, labels, real.at[2].set(False), neighbors=3, alpha=0.9)
    assert alone[3, 0] < alone[3, 1]


def test_graph_answers_whatever_the_order(key):
    """Of the support set and of the queries."""
    task = sample(key)
    learner = metajax.learners.graph(
        metajax.models.identity(), way=3, features=4, edge_features=4
    )
    meta_params = learner.init(key, task)

    def answer(support, inputs):
        return learner.predict(learner.adapt(meta_params, support), inputs)

    expected = answer(task.support, task.query.x)
    order = jnp.array([5, 2, 0, 3, 1, 4])
    shuffled = jax.tree.map(lambda leaf: leaf[order], task.support)
    np.testing.assert_allclose(
        answer(shuffled, task.query.x), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        answer(task.support, task.query.x[::-1]), expected[::-1], rtol=1e-4, atol=1e-5
    )
    changed = task.support._replace(y=jnp.roll(task.support.y, 1))
    assert not np.allclose(answer(changed, task.query.x), expected, atol=1e-3)


ERRORS = {
    "neighbors": (
        metajax.learners.label_propagation,
        {"neighbors": 0},
        "`neighbors` must be",
    ),
    "alpha": (
        metajax.learners.label_propagation,
        {"alpha": 1.0},
        "`alpha` must be above 0 and",
    ),
    "way": (
        metajax.learners.graph,
        {"way": None},
        "`way` must be an integer of at least 1",
    ),
    "layers": (
        metajax.learners.graph,
        {"way": 3, "layers": 0},
        "`layers` must be an integer",
    ),
    "edges": (
        metajax.learners.graph,
        {"way": 3, "edge_features": 0},
        "`edge_features` must be",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    learner, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        learner(metajax.models.identity(), **arguments)

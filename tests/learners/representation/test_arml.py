"""ARML: its graphs against NumPy, its limit MAML, gradients, and its errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.filters import path_names
from metajax.objectives import squared_error
from metajax.types import Examples, Task

ENTRIES = {
    "arml": Entry(
        lambda: metajax.learners.arml(
            small_mlp(WAY, "support"),
            optax.sgd(0.1),
            inner_steps=2,
            way=4,
            features=5,
            vertices=2,
        )
    ),
}

FEATURES, VERTICES, SCALE = 6, 4, 0.8


def curves():
    """Five points of a line in two inputs, and four queries."""
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    y = x @ np.float32([[1.5], [-0.7]]) + np.float32(0.5)
    return Task(Examples(x[:5], y[:5]), Examples(x[5:], y[5:]))


def build(steps=2, **changes):
    settings = {"features": FEATURES, "vertices": VERTICES, "link_scale": SCALE}
    return metajax.learners.arml(
        metajax.models.mlp(WAY if changes.get("way") else 1, hidden_sizes=(4,)),
        optax.sgd(0.1),
        inner_steps=steps,
        **settings | ({} if "way" in changes else {"num_outputs": 1}) | changes,
    )


def start(task, **changes):
    """Meta-parameters at random; to draw them takes no compilation."""
    shapes = jax.eval_shape(build(**changes).init, jax.random.key(0), task)
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32) / 2, shapes
    )


def padded(support):
    """The examples in another order between rows of nonsense."""
    order = np.array([2, 0, 9, 4, 9, 1, 3])
    mask = order < 9

    def leaf(values):
        return np.where(mask[:, None], values[np.where(mask, order, 0)], 1e3)

    return Examples(leaf(support.x), leaf(support.y), mask)


@functools.partial(jax.jit, static_argnums=0)
def run(learner, meta_params, task):
    return learner.adapt(meta_params, task.support), learner.loss(meta_params, task)


@functools.partial(jax.jit, static_argnums=0)
def run_with_gradient(learner, meta_params, task):
    gradient = jax.value_and_grad(learner.loss, has_aux=True)
    return learner.adapt(meta_params, task.support), *gradient(meta_params, task)


# The paper's equations in NumPy.


def dense(params, rows):
    return rows @ params["kernel"] + params["bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x), axis=1, keepdims=True)


def edges(params, rows):
    """Eq. (4), (5)."""
    size = len(rows)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if i != j:
                found[i, j] = sigmoid(dense(params, np.abs(rows[i] - rows[j]))).item()
    return found


def autoencode(params, rows):
    """Eq. (8), (9)."""
    codes = np.tanh(dense(params["Dense_1"], relu(dense(params["Dense_0"], rows))))
    again = dense(params["Dense_3"], relu(dense(params["Dense_2"], codes)))
    return codes.mean(axis=0), np.mean((again - rows) ** 2)


def relu(x):
    return np.maximum(x, 0)


def gate_by_hand(params, prototypes, read, layers):
    """Eq. (4) to (10), from what exists of the prototypes."""
    vertices, size = params["vertices"], len(prototypes)
    distances = np.array([[np.sum((c - h) ** 2) for h in vertices] for c in prototypes])
    links = softmax(-distances / SCALE**2 / 2)
    adjacency = np.eye(size + len(vertices))
    adjacency[:size, :size] += edges(params["prototype_edges"], prototypes)
    adjacency[size:, size:] += edges(params["vertex_edges"], vertices)
    adjacency[:size, size:] += links
    adjacency[size:, :size] += links.T
    degrees = np.diag(1 / adjacency.sum(axis=1))
    nodes = np.concatenate([prototypes, vertices])
    for layer in range(layers):
        nodes = degrees @ adjacency @ dense(params[f"propagate_{layer}"], nodes)
        nodes = np.tanh(nodes)
    t, error_t = autoencode(params["enriched"], nodes[:size])
    q, error_q = autoencode(params["raw"], read)
    return sigmoid(dense(params["gate"], np.concatenate([t, q]))), error_t + error_q


def found_gate(base, adapted):
    """What phi_0 is of theta, in the order of leaves."""
    ratios = jax.tree.map(lambda new, old: np.ravel(new / old), adapted, base)
    return np.concatenate(jax.tree.leaves(ratios))


def test_clusters_and_graphs_match_numpy():
    task = curves()
    changes = {"clusters": 3, "reconstruction_weight": 0.3}
    meta_params, learner = start(task, **changes), build(steps=0, **changes)
    adapted, (value, metrics) = run(learner, meta_params, task)

    params = jax.tree.map(np.float64, meta_params.relations["params"])
    both = np.concatenate([task.support.x, task.support.y], axis=1)
    seen = dense(
        jax.tree.map(np.float64, meta_params.embedding)["params"]["head"], both
    )
    shares = softmax(dense(params["assign"], seen))
    prototypes = np.array([np.average(seen, axis=0, weights=s) for s in shares.T])
    gate, error = gate_by_hand(params, prototypes, seen, layers=2)
    np.testing.assert_allclose(found_gate(meta_params.base, adapted), gate, rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(value, metrics["query_loss"] + 0.3 * error, rtol=1e-4)


def test_classes_and_graphs_match_numpy(key):
    """Of four classes one is absent, and then has neither node nor edge."""
    task = sample(key)
    loss = metajax.objectives.cross_entropy
    changes = {"way": 4, "layers": 1, "objective": loss}
    meta_params, learner = start(task, **changes), build(steps=0, **changes)
    adapted, (value, metrics) = run(learner, meta_params, task)

    params = jax.tree.map(np.float64, meta_params.relations["params"])
    weights = jax.tree.map(np.float64, meta_params.embedding)["params"]["head"]
    seen = dense(weights, np.asarray(task.support.x))
    labels = np.asarray(task.support.y)
    prototypes = np.array([seen[labels == k].mean(axis=0) for k in range(WAY)])
    read = np.concatenate([prototypes, np.eye(4)[:WAY]], axis=1)
    gate, error = gate_by_hand(params, prototypes, read, layers=1)
    np.testing.assert_allclose(found_gate(meta_params.base, adapted), gate, rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(value, metrics["query_loss"] + 0.01 * error, rtol=1e-4)


def test_a_gate_of_ones_is_maml():
    """The same adapted parameters and the same meta-gradient, to the last bits."""
    task, learner = curves(), build()
    meta_params = start(task)
    params = meta_params.relations["params"]
    gate = params["gate"] | {"bias": jnp.full(17, 100.0)}  # its sigmoid is 1
    meta_params = meta_params._replace(relations={"params": params | {"gate": gate}})
    maml = metajax.learners.maml(
        metajax.models.mlp(1, hidden_sizes=(4,)),
        optax.sgd(0.1),
        inner_steps=2,
        objective=squared_error,
    )
    adapted, (_, metrics), gradient = run_with_gradient(learner, meta_params, task)
    expected, (value, _), slope = run_with_gradient(maml, meta_params.base, task)
    chex.assert_trees_all_close(adapted, expected, rtol=1e-6)
    chex.assert_trees_all_close(gradient.base, slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["query_loss"], value, rtol=1e-6)


def test_order_and_padding_change_nothing():
    """In regression; the battery has classification."""
    task, learner = curves(), build(steps=1)
    meta_params = start(task)
    changed = task._replace(support=padded(task.support))
    chex.assert_trees_all_close(
        run(learner, meta_params, changed),
        run(learner, meta_params, task),
        rtol=1e-4,
        atol=1e-6,
    )


def test_meta_gradient_matches_finite_differences():
    task, learner = curves(), build(steps=1)
    meta_params = start(task)
    with jax.enable_x64(True):
        meta_params, task = jax.tree.map(np.float64, (meta_params, task))
        loss = jax.jit(lambda params: learner.loss(params, task)[0])
        check_grads(loss, (meta_params,), order=1, modes=["rev"])
        slopes = jax.jit(jax.grad(loss))(meta_params)
    for path, leaf in zip(path_names(slopes), jax.tree.leaves(slopes), strict=True):
        assert np.any(leaf), path


def test_a_cluster_without_examples_is_finite():
    """Its shares vanish in single precision, and divide one another all the same."""
    task, learner = curves(), build(steps=1)
    meta_params = start(task)
    params = meta_params.relations["params"]
    far = params["assign"] | {"bias": np.float32([200.0, -200.0])}
    meta_params = meta_params._replace(relations={"params": params | {"assign": far}})
    adapted, _, gradient = run_with_gradient(learner, meta_params, task)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(adapted))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_starts_near_the_initial_values_of_the_model(key):
    """A gate of one half on twice these; what has no gate starts at them."""
    task, model = curves(), metajax.models.mlp(1, hidden_sizes=(4,))
    head = metajax.filters.only("head")
    learner = build(steps=0, gates=head, adapts=head)

    @jax.jit
    def begin(key):
        meta_params = learner.init(key, task)
        gate = meta_params.relations["params"]["gate"]
        assert gate["kernel"].shape == (2 * FEATURES, 4 + 1)
        gate["kernel"] = jnp.zeros_like(gate["kernel"])
        initial = model.init(jax.random.split(key, 4)[0], task.support.x)
        return learner.adapt(meta_params, task.support), initial

    chex.assert_trees_all_close(*begin(key))


WRONG = {
    "features": ({"features": 0}, "`features` must be an integer of at least 1, got 0"),
    "vertices": ({"vertices": 1.5}, "`vertices` must be an integer .* got 1.5"),
    "clusters": ({"clusters": -1}, "`clusters` must be an integer .* got -1"),
    "layers": ({"layers": 0}, "`layers` must be an integer of at least 1, got 0"),
    "link_scale": ({"link_scale": 0.0}, "`link_scale` must be above 0 .* got 0.0"),
    "weight": (
        {"reconstruction_weight": -1.0},
        "`reconstruction_weight` must be at least 0 and finite, got -1.0",
    ),
    "way": ({"way": 0}, "`way` must be an integer of at least 1, got 0"),
    "inner_steps": ({"steps": -1}, "`inner_steps` must be .*got -1"),
    "gradient": ({"gradient": "second"}, "reverse, remat, mixed"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_bad_configuration_is_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_an_inner_optimizer_is_needed():
    with pytest.raises(TypeError, match=r"optax.sgd.*got 0.1"):
        metajax.learners.arml(metajax.models.mlp(1), 0.1, inner_steps=1, num_outputs=1)


def test_support_sets_that_do_not_fit_are_explained(key):
    labels, numbers = sample(key), curves()
    with pytest.raises(ValueError, match="class labels: give `way`"):
        build().init(key, labels)
    with pytest.raises(ValueError, match="`way` is 3, and targets are not labels but"):
        build(way=3).init(key, numbers)
    pair = numbers.support._replace(x=(numbers.support.x, numbers.support.x))
    with pytest.raises(ValueError, match=r"`x` as one array.*got tuple"):
        build().adapt(start(numbers), pair)
    maps = metajax.models.from_functions(
        lambda key, x: {}, lambda params, x: x[:, :, None]
    )
    with pytest.raises(ValueError, match=r"must give vectors.*gives \[6, 4, 1\]"):
        build(way=WAY, embedding=maps).init(key, labels)

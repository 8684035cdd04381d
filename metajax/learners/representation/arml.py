"""Automated Relational Meta-Learning (ARML): a graph of knowledge gates where to start.

H. Yao, X. Wu, Z. Tao, Y. Li, B. Ding, R. Li, Z. Li, "Automated Relational
Meta-learning", ICLR 2020, https://arxiv.org/abs/2001.00745.

    c_k = mean of E(x_j) over class k                                            Eq. (2)
    c_k = sum_j P_kj E(x_j, y_j) / sum_j P_kj,  P = softmax over k of W_p E      Eq. (3)
    A_R(c_j, c_m) = sigmoid(W_r |c_j - c_m| + b_r),   prototypes                 Eq. (4)
    A_G(h_j, h_m) = sigmoid(W_o |h_j - h_m| + b_o),   vertices of knowledge      Eq. (5)
    A_S(c_j, h_m) = softmax over m of -|c_j - h_m|^2 / (2 gamma^2)               Eq. (6)
    [C^; H^] = tanh(normalised(A + I) [C; H] W),   A = [A_R, A_S; A_S', A_G]     Eq. (7)
    q = mean of AG_q(C),   L_q = mean of |C - decode(AG_q(C))|^2                 Eq. (8)
    t = mean of AG_t(C^),  L_t = mean of |C^ - decode(AG_t(C^))|^2               Eq. (9)
    phi_0 = sigmoid(W_g [t, q] + b_g) theta                                     Eq. (10)
    phi_{t+1} = phi_t - alpha grad L_support(phi_t),  `inner_steps` times
    outer   min of the mean over tasks of  L_query(phi_T) + mu (L_q + L_t)      Eq. (11)

theta is `meta_params.base`, E `embedding`, all else `meta_params.relations`: h are its
`vertices`. mu is `reconstruction_weight` and gamma `link_scale`. Targets that are
labels make one prototype of each class, Eq. (2); real targets make `clusters`, Eq. (3).
As in the official code, q is then of the embedded examples in place of C, and the
prototype of a class goes into AG_q beside the one-hot class.

Differs from the paper: AG_q and AG_t are dense networks, which the paper names as a
choice, and not the GRUs of its experiments, so that the order of the support set is
without effect; two layers of Eq. (7), as in the paper's one no prototype learns what
the vertices tell each other; a cluster is a weighted mean where the paper has a sum, so
that it does not grow with the support set; theta starts at twice the model's initial
values, so that phi_0 starts near these, where the gate is one half.

Checked against MAML on the paper's regression tasks, where their published errors are
0.438 and 2.292, and by `benchmarks/function_families.py` 0.249 and 0.923.
"""

import math
from typing import Annotated, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from metajax.builders.descent import InnerOptimizer, check_descent, learner_of_start
from metajax.builders.heads import embedded
from metajax.builders.targets import check_targets, choose_objective
from metajax.checks import (
    check_integers,
    check_not_negative,
    check_parts,
    check_positive,
)
from metajax.filters import combine, everything, partition
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.unroll import GradientMode
from metajax.masks import hide_padding, masked_mean
from metajax.models.networks import mlp
from metajax.types import (
    Array,
    CommandLine,
    Examples,
    Filter,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["ARMLParams", "arml"]


class ARMLParams(NamedTuple):
    """What is learned.

    Attributes:
      base: theta, parameters of the model.
      embedding: parameters of E.
      relations: parameters of the graphs, the autoencoders and the gate.
      optimizer: parameters of a `LearnedOptimizer`, else None.
    """

    base: PyTree
    embedding: PyTree
    relations: PyTree
    optimizer: PyTree


def arml(
    model: Model,
    inner_optimizer: Annotated[InnerOptimizer, CommandLine({"learning_rate": 0.001})],
    *,
    inner_steps: int,
    eval_inner_steps: int | None = None,
    way: int | None = None,
    num_outputs: int | None = None,
    embedding: Model | None = None,
    features: int = 40,
    vertices: int = 6,
    clusters: int = 2,
    layers: int = 2,
    link_scale: float = math.sqrt(2),
    reconstruction_weight: float = 0.01,
    objective: Objective | None = None,
    gradient: GradientMode = "remat",
    gates: Filter = everything,
    adapts: Filter = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds ARML.

    Choose it where tasks are of several unlike kinds, so that one initialisation serves
    none of them, and a few examples show of which kind a task is. The gate has
    `2 * features` numbers for each gated parameter: gate some of a large model.

    Args:
      model: the network.
      inner_optimizer: what adapts it from where the gate starts it, such as
        `optax.sgd(0.001)`, the paper's, or a `LearnedOptimizer`.
      inner_steps: inner steps in training, at least 0.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      way: the classes of a task, N, if targets are labels, which are below it; give it
        or `num_outputs`.
      num_outputs: how many real numbers a target has.
      embedding: E, a model to vectors `[n, D]`, of the inputs if targets are labels,
        else of flat inputs beside flat targets `[n, F]`. None is one linear layer of
        `features`, the paper's for regression; for images give a network, such as
        `conv4()`.
      features: units of the layers of autoencoders, and numbers in each of t and q, at
        least 1.
      vertices: of the graph of knowledge, at least 1; 6 in the paper's regression, 4 to
        8 on images.
      clusters: prototypes of a task whose targets are real numbers, at least 1.
      layers: of propagation through the graph, at least 1. With the paper's one, the
        edges between vertices of knowledge have no effect.
      link_scale: gamma of Eq. (6), above 0: the distance over which a vertex counts.
        By the official code sqrt(2) for regression, sqrt(8) for images.
      reconstruction_weight: mu, at least 0.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      gates: which parameters are gated; see `metajax.filters`.
      adapts: which parameters the inner steps adapt.
      check_mixed: see `metajax.inner.unroll.unroll`.

    Returns:
      A learner whose `meta_params` are `ARMLParams` and whose `adapted` are parameters
      of `model`. Its loss reports `query_loss`, the loss without `reconstruction`
      (L_q + L_t), and `support_loss_t` for up to 11 inner steps t.

    Raises:
      ValueError: if a number is out of range; when it is used, if targets are not
        what it is built for, if inputs or targets are not one
        array each, or if `embedding` does not give vectors.
      TypeError: if `inner_optimizer` is no optimizer.

    Example:
      >>> import optax
      >>> from metajax.learners import arml
      >>> from metajax.models import mlp
      >>> learner = arml(mlp(1), optax.sgd(0.001), inner_steps=5, num_outputs=1)
    """
    if embedding is not None:
        check_parts(embedding=embedding)
    check_parts(model=model, gates=gates, adapts=adapts)
    objective = choose_objective(way, num_outputs, objective)
    check_integers(1, features=features, vertices=vertices)
    check_integers(1, clusters=clusters, layers=layers)
    check_positive(link_scale=link_scale)
    check_not_negative(reconstruction_weight=reconstruction_weight)
    check_descent(
        inner_optimizer, gradient, inner_steps, eval_inner_steps, may_be_learned=True
    )
    embed = mlp(features, hidden_sizes=()) if embedding is None else embedding

    def relations(num_gates: int) -> Relations:
        return Relations(features, vertices, clusters, num_gates, link_scale, layers)

    def look(embedding_params: PyTree, support: Examples) -> tuple[Nodes, Nodes | None]:
        """Embeds the examples, and makes prototypes of classes if there are any."""
        shown = embed.apply(embedding_params, shown_to(support), mask=support.mask)
        if shown.ndim != 2:
            raise ValueError(
                "`embedding` must give vectors, `[n, D]`, and it gives "
                f"{list(shown.shape)}; flatten them, or use conv4(pooling='max')."
            )
        if way is None:
            is_real = support.mask
            if is_real is None:
                is_real = jnp.ones(len(shown), bool)
            return Nodes(hide_padding(shown, support.mask), is_real), None
        seen = embedded(shown, support, way)
        return Nodes(seen.features, seen.is_real), Nodes(seen.means, seen.is_present)

    def shown_to(support: Examples) -> PyTree:
        """Gives what E reads."""
        _check_support(support, way, num_outputs)
        if way is not None:
            return support.x
        return jnp.concatenate(
            [leaf.reshape(len(leaf), -1) for leaf in (support.x, support.y)], axis=1
        )

    def start(meta_params: ARMLParams, support: Examples) -> tuple[PyTree, Array]:
        """Computes phi_0, and L_q + L_t."""
        gated, others = partition(meta_params.base, gates)
        theta, unravel = ravel_pytree(gated)
        shown = look(meta_params.embedding, support)
        outputs = relations(theta.size).apply(meta_params.relations, *shown)
        gate, error = cast(tuple[Array, Array], outputs)
        return combine(unravel(gate * theta), others), error

    def init(key: Array, task: Task) -> ARMLParams:
        key_base, key_embedding, key_relations, key_optimizer = jax.random.split(key, 4)
        base = model.init(key_base, task.support.x)
        gated, others = partition(base, gates)
        twice = jax.tree.map(lambda leaf: 2 * leaf, gated)
        size = ravel_pytree(gated)[0].size
        embedding_params = embed.init(key_embedding, shown_to(task.support))
        learned = None
        if isinstance(inner_optimizer, LearnedOptimizer):
            learned = inner_optimizer.init(key_optimizer, partition(base, adapts)[0])
        return ARMLParams(
            combine(twice, others),
            embedding_params,
            relations(size).init(key_relations, *look(embedding_params, task.support)),
            learned,
        )

    learner = learner_of_start(
        model,
        init,
        lambda meta_params, support: start(meta_params, support)[0],
        inner_optimizer,
        objective=objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        gradient=gradient,
        adapts=adapts,
        check_mixed=check_mixed,
    )

    def loss(
        meta_params: ARMLParams, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        value, metrics = learner.loss(meta_params, task, key=key)
        # Compiled, the graph is not gone through a second time.
        _, error = start(meta_params, task.support)
        metrics = metrics | {"query_loss": value, "reconstruction": error}
        return value + reconstruction_weight * error, metrics  # Eq. (11)

    return learner._replace(loss=loss)


def _check_support(support: Examples, way: int | None, num_outputs: int | None) -> None:
    """Raises a ValueError unless the targets are what `way` says."""
    for name, leaf in (("x", support.x), ("y", support.y)):
        if getattr(leaf, "ndim", 0) < 1 and (name == "y" or way is None):
            raise ValueError(
                f"ARML reads the support set, and needs its `{name}` as one array "
                f"`[n, ...]`, got {type(leaf).__name__}."
            )
    size = math.prod(support.y.shape[1:])
    check_targets(support.y, way, num_outputs, size=size)


class Nodes(NamedTuple):
    """Rows of which some are there.

    Attributes:
      rows: `[m, D]`; those that are not there are 0.
      is_there: bool `[m]`.
    """

    rows: Array
    is_there: Array


class Autoencoder(nn.Module):
    """A code for each row, and what is made of it again. Eq. (8), (9)."""

    features: int

    @nn.compact
    def __call__(self, nodes: Nodes) -> tuple[Array, Array]:
        """The mean code `[features]`, and the mean squared error."""
        hidden = nn.relu(nn.Dense(self.features)(nodes.rows))
        codes = nn.tanh(nn.Dense(self.features)(hidden))
        hidden = nn.relu(nn.Dense(self.features)(codes))
        again = nn.Dense(nodes.rows.shape[-1])(hidden)
        errors = jnp.mean(jnp.square(again - nodes.rows), axis=-1)
        code = jnp.mean(codes, axis=0, where=nodes.is_there[:, None])
        return code, masked_mean(errors, nodes.is_there)


class Relations(nn.Module):
    """From what a task shows to its gate."""

    features: int
    num_vertices: int
    num_clusters: int
    num_gates: int
    link_scale: float
    num_layers: int

    @nn.compact
    def __call__(self, seen: Nodes, classes: Nodes | None) -> tuple[Array, Array]:
        """The gate `[num_gates]`, and the reconstruction error L_q + L_t.

        Args:
          seen: the embedded examples.
          classes: prototypes of classes, or None for clusters of the examples.
        """
        if classes is None:
            prototypes, read = self._clusters(seen), seen
        else:
            one_hot = jnp.eye(len(classes.rows), dtype=classes.rows.dtype)
            one_hot = jnp.where(classes.is_there[:, None], one_hot, 0)
            both = jnp.concatenate([classes.rows, one_hot], axis=1)
            prototypes, read = classes, classes._replace(rows=both)
        enriched = self._propagate(prototypes)
        of_task, error_of_task = Autoencoder(self.features, name="raw")(read)
        of_graph, error_of_graph = Autoencoder(self.features, name="enriched")(enriched)
        code = jnp.concatenate([of_graph, of_task])
        gate = nn.sigmoid(nn.Dense(self.num_gates, name="gate")(code))  # Eq. (10)
        return gate, error_of_task + error_of_graph

    def _clusters(self, seen: Nodes) -> Nodes:
        """Eq. (3)."""
        scores = nn.Dense(self.num_clusters, name="assign")(seen.rows)
        # P over its sum, by logarithms: no example may belong to a cluster at all.
        shares = nn.log_softmax(scores, axis=1)
        weights = nn.softmax(shares, axis=0, where=seen.is_there[:, None])
        return Nodes(weights.T @ seen.rows, jnp.ones(self.num_clusters, bool))

    def _propagate(self, prototypes: Nodes) -> Nodes:
        """The prototypes after they have read from the graph of knowledge."""
        vertices = self.param(
            "vertices",
            nn.initializers.glorot_uniform(),
            (self.num_vertices, prototypes.rows.shape[-1]),
        )
        num, is_there = len(prototypes.rows), prototypes.is_there
        own = _likeness(prototypes.rows, nn.Dense(1, name="prototype_edges"))
        own = jnp.where(is_there[:, None] & is_there[None, :], own, 0)
        knowledge = _likeness(vertices, nn.Dense(1, name="vertex_edges"))
        away = prototypes.rows[:, None] - vertices[None]
        distances = jnp.sum(jnp.square(away), axis=-1)
        links = nn.softmax(-distances / (2 * self.link_scale**2), axis=1)  # Eq. (6)
        links = jnp.where(is_there[:, None], links, 0)
        adjacency = jnp.block([[own, links], [links.T, knowledge]])
        adjacency = adjacency + jnp.eye(len(adjacency))
        adjacency = adjacency / jnp.sum(adjacency, axis=1, keepdims=True)
        nodes = jnp.concatenate([prototypes.rows, vertices])
        for layer in range(self.num_layers):  # Eq. (7)
            out = nn.Dense(nodes.shape[-1], name=f"propagate_{layer}")(nodes)
            nodes = nn.tanh(adjacency @ out)
        return Nodes(jnp.where(is_there[:, None], nodes[:num], 0), is_there)


def _likeness(rows: Array, score: nn.Dense) -> Array:
    """Eq. (4), (5): edges `[m, m]` between rows, none of a row with itself."""
    edges = nn.sigmoid(score(jnp.abs(rows[:, None] - rows[None])))[..., 0]
    return jnp.where(jnp.eye(len(rows), dtype=bool), 0, edges)

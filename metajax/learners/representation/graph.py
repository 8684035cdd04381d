"""Few-shot learning with a graph neural network over a query and the support set.

V. Garcia, J. Bruna, "Few-Shot Learning with Graph Neural Networks", ICLR 2018,
https://arxiv.org/abs/1711.04043.

    nodes: [f(x_i), one-hot y_i] of the support set, [f(x), 1/N, .., 1/N] of one query
    A_ij = softmax over j of MLP(|v_i - v_j|)                               Eq. (3), (4)
    v <- [v, leaky_relu([v, A v] Theta)], `layers` times                        Eq. (2)
    logits = [v, A v] Theta at the node of the query

Each query has a graph of its own, so the answers are inductive.

Differs from the paper: the MLP and the layers normalise each edge and node by itself
(layer normalisation), and not over the batch.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner, keep_support
from metajax.checks import check_integers, check_parts
from metajax.types import Array, Embedding, Learner, PyTree

__all__ = ["graph"]


class GraphNetwork(nn.Module):
    """Layers of learned adjacency and graph convolution.

    Attributes:
      layers: hidden ones.
      features: units that each adds to a node.
      edge_features: hidden units of the MLP on edges, twice this and then this.
    """

    layers: int
    features: int
    edge_features: int

    @nn.compact
    def __call__(self, nodes: Array, is_real: Array, num_outputs: int) -> Array:
        """Maps nodes `[n, D]` to outputs `[num_outputs]` at the last node."""
        for _ in range(self.layers):
            out = nn.Dense(self.features)(self._gather(nodes, is_real))
            out = nn.leaky_relu(nn.LayerNorm()(out))
            nodes = jnp.concatenate([nodes, out], axis=1)  # Eq. (2)
        return nn.Dense(num_outputs)(self._gather(nodes, is_real)[-1])

    def _gather(self, nodes: Array, is_real: Array) -> Array:
        """Nodes beside the mean of the others `[n, 2 D]`, as the edges weigh them."""
        edges = jnp.abs(nodes[:, None] - nodes[None])
        for size in (2 * self.edge_features, self.edge_features):
            edges = nn.leaky_relu(nn.LayerNorm()(nn.Dense(size)(edges)))
        scores = nn.Dense(1)(edges)[..., 0]  # Eq. (3), (4)
        has_edge = is_real[None, :] & ~jnp.eye(len(nodes), dtype=bool)
        adjacency = jax.nn.softmax(jnp.where(has_edge, scores, -1e9), axis=1)
        return jnp.concatenate([nodes, adjacency @ nodes], axis=1)


def graph(
    model: Embedding,
    *,
    way: int,
    layers: int = 2,
    features: int = 48,
    edge_features: int = 64,
) -> Learner:
    """Builds the graph neural network of Garcia and Bruna.

    Choose it to learn how labels pass between examples, for tasks of one way; its work
    grows with queries times the square of the support set.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the classes of a task, N; labels are below it.
      layers: hidden graph convolutions, at least 1.
      features: units that each adds to a node, at least 1.
      edge_features: hidden units on edges, at least 1.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`; `predict` gives logits `[n,
      N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import graph
      >>> from metajax.models import conv4
      >>> learner = graph(conv4(normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(1, way=way, layers=layers)
    check_integers(1, features=features, edge_features=edge_features)
    network = GraphNetwork(layers, features, edge_features)

    def nodes_of(support: Embedded, query: Array) -> tuple[Array, Array]:
        known = jnp.concatenate([support.features, support.one_hot], axis=1)
        asked = jnp.concatenate([query, jnp.full(way, 1 / way, query.dtype)])
        is_real = jnp.concatenate([support.is_real, jnp.ones(1, bool)])
        return jnp.concatenate([known, asked[None]]), is_real

    def init(key: Array, support: Embedded) -> PyTree:
        nodes, is_real = nodes_of(support, support.features[0])
        return network.init(key, nodes, is_real, way)

    def classify(
        head_params: PyTree,
        support: Embedded,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key

        def answer(query: Array) -> Array:
            nodes, is_real = nodes_of(support, query)
            return cast(Array, network.apply(head_params, nodes, is_real, way))

        return jax.vmap(answer)(features)

    return head_learner(model, Head(keep_support, classify, init), way=way)

"""A soft decision tree with learned splits, depth and leaf size, which hardens.

After N. Frosst, G. Hinton, "Distilling a Neural Network Into a Soft Decision Tree",
CEX 2017, https://arxiv.org/abs/1711.09784, and S. Marton, S. Luedtke, C. Bartelt, H.
Stuckenschmidt, "GradTree: Learning Axis-Aligned Decision Trees with Gradient Descent",
AAAI 2024, https://arxiv.org/abs/2305.03515.

A node m of a complete tree mixes splits c, each of one column and one threshold, midway
between neighbouring support values; a row goes left, or on at all, with probability

    l_m(x) = sum over c of pi_mc sigmoid((t_c - x[d_c]) / (temperature s[d_c])),
    pi_m = softmax(score_m),       g_m = sigmoid(gate_m)

s is the standard deviation of a column in the support set. g breaks the stick of
depth: what arrives at a node stops there with 1 - g_m, so that the depth of a row has a
distribution, whose mean is reported as `expected_depth`. The answer is the mixture,
over all nodes where a row may stop, of the classes of the support mass w in each,

    Q_m(k) = (w_mk + smoothing Q_parent(k)) / (w_m + smoothing),

and the root's parent is uniform over the classes of the task. These are solved, not
descended to.

Columns mean something else in each table, so what is learned over tasks speaks of none.
The score of a split is the same function in all tables, of what the split does to the
classes of the support rows that reach its node: it is

    sharpness * gain + network(features)
    + penalty * log sigmoid(4 (lighter - (min_mass - 1/2)))

where gain is that of information in nats, of all rows together, lighter is the mass of
the lighter of the two leaves, and the features (`FEATURES`) also say what the whole
column is worth. The network is 0 at first, so that the tree is at first that of CART
with the criterion of entropy. The same features, in their mean over pi, move the gate
of the node. Rows reach a node here along the splits of highest score above it, as the
tree that is read is built of these. Where all tasks have the same columns, each column
may also have a learned score of its own in each node.

From there a few steps of an inner optimizer move all scores and gates together, down
the loss of the support rows. The loss is leave-one-out: a row is removed from the leaf
counts that judge it (exact, because leaf counts are closed form). Otherwise each step
would favour smaller, purer leaves.

The hard tree takes the best split and steps in place of sigmoids, and stops where g is
below 1/2 or a leaf would be lighter than `min_mass`, rounded. The outer loss is that of
the soft tree alone: that of the hard one, with the soft one's gradient straight through
as in GradTree, closed the gates and left both trees worse.

Differs from Frosst and Hinton: splits are mixtures of axis-aligned ones, not oblique;
leaves are solved; inner nodes answer too. From GradTree: one threshold for each split
and not for each column of a node, softmax in place of entmax, no straight-through
gradients, and few steps from a start that is learned.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.builders.decision_tree import DecisionTree, leaf_of, level_slices
from metajax.builders.descent import InnerOptimizer, check_descent
from metajax.builders.heads import Embedded, Fitted, Head, head_learner, table_rows
from metajax.builders.splits import FEATURES, candidate_splits, describe_splits
from metajax.checks import check_flags, check_instances, check_integers, check_positive
from metajax.inner.learned_optimizer import HyperParameter, LearnedOptimizer, learned
from metajax.inner.unroll import GradientMode, unroll
from metajax.masks import hide_padding, masked_mean
from metajax.objectives import accuracy, cross_entropy, query_score, split_key
from metajax.types import Array, CommandLine, Learner, Metrics, PyTree, Task, Way

__all__ = ["SoftTree", "harden", "soft_tree"]


_NEVER = -jnp.inf


class SoftTree(NamedTuple):
    """A fitted tree; M splits, T = n candidate thresholds of each of D columns.

    Attributes:
      rows: `[n, D]`, the support rows; 0 for padding.
      one_hot: `[n, N]`, their classes; 0 for padding.
      scale: s `[D]`, 1 for constant columns.
      thresholds: `[T, D]`; 0 where there is none.
      scores: `[M, T * D]`, minus infinity where there is no split.
      is_allowed: bool `[M, T * D]`, splits whose leaves are heavy enough.
      gates: `[M]`, logits of going on.
      temperature: of the sigmoids, in deviations.
      smoothing: rows that a parent's classes count for.
      min_mass: least rows of a leaf.
      probabilities: Q `[2M + 1, N]` of the soft tree.
    """

    rows: Array
    one_hot: Array
    scale: Array
    thresholds: Array
    scores: Array
    is_allowed: Array
    gates: Array
    temperature: Array
    smoothing: Array
    min_mass: Array
    probabilities: Array


def soft_tree(
    *,
    way: Way,
    depth: int = 3,
    inner_steps: int = 3,
    inner_optimizer: Annotated[
        InnerOptimizer | None, CommandLine({"learning_rate": 10.0, "learned": "leaf"})
    ] = None,
    gradient: GradientMode = "remat",
    hidden_size: int = 16,
    smoothing: float = 3.0,
    min_mass: float = 1.0,
    temperature: float = 0.1,
    sharpness: float = 2.0,
    same_columns: bool = False,
) -> Learner:
    """Builds a soft tree with meta-learned splits, depth and leaf size.

    Choose it for tasks that are small tables, when a person is to read the answer:
    `harden` makes a tree of one question at each node of it. Tables may have any
    columns in any units, padded to one width by columns of 0. Memory of a task is of
    the order of rows * D * (rows + 16 * 2^depth) numbers.

    Args:
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot.
      depth: levels of splits at most, at least 1; how many are used is learned.
      inner_steps: inner steps on scores and gates, at least 0.
      inner_optimizer: what takes them, of Optax or learned, on a dict of `scores`
        `[M, n * D]` and `gates` `[M]`. None for SGD whose two rates are learned.
      gradient: how the outer gradient passes the inner steps; see
        `metajax.inner.unroll`.
      hidden_size: width of the network that scores splits, at least 1.
      smoothing: rows that a parent's classes count for, at first, above 0.
      min_mass: least rows of a leaf at first, above 0; it is rounded to harden.
      temperature: of the sigmoids at first, in standard deviations, above 0.
      sharpness: score of a nat of information gain at first, above 0.
      same_columns: whether all tasks have the same columns in the same order; each then
        has a learned score of its own in each node.

    Returns:
      A learner whose `meta_params` are `metajax.builders.heads.HeadLearnerParams`:
      `head` is a dict of `log_smoothing`, `log_min_mass`, `log_penalty`,
      `log_temperature`, `log_sharpness` (scalars), `depth_gates` `[depth]`,
      `gate_weights` `[F]`, the network's `weights_in` `[F, hidden]`, `bias`
      `[hidden_size]` and `weights_out` `[hidden_size]`, `columns` `[M, D]` if they are
      the same, and `optimizer`, parameters of a learned one. `adapted` holds a
      `SoftTree` as `fitted`; `predict` takes rows `[n, D]` and gives log probabilities
      `[n, N]` of the soft tree, minus infinity for classes without a support example.
      The loss reports `hard_accuracy`, `expected_depth` of query rows, and
      `hard_depth`, theirs in the hard tree.

    Raises:
      ValueError: if an argument is out of range; in its functions, if inputs are not
        rows `[n, D]`, or not of as many columns as were learned.
      TypeError: if the inner optimizer is none.

    Example:
      >>> from metajax.learners import harden, soft_tree
      >>> from metajax.tasks import row_tasks
      >>> tasks = row_tasks(tables, rows=(5, 40), num_queries=30, standardize=None)
      >>> learner = soft_tree(way=3)
      >>> task = tasks(jax.random.key(0))
      >>> meta_params = learner.init(jax.random.key(1), task)
      >>> adapted = learner.adapt(meta_params, task.support)
      >>> print(harden(adapted).text())  # doctest: +SKIP
    """
    check_flags(same_columns=same_columns)
    check_integers(1, depth=depth, hidden_size=hidden_size)
    check_positive(
        smoothing=smoothing,
        min_mass=min_mass,
        temperature=temperature,
        sharpness=sharpness,
    )
    if inner_optimizer is None:
        rate = HyperParameter(10.0, per="leaf", domain="positive")
        inner_optimizer = learned(optax.sgd, learning_rate=rate)
    check_descent(inner_optimizer, gradient, inner_steps, None, may_be_learned=True)
    num_splits, levels = 2**depth - 1, level_slices(depth)
    level_of_node = np.repeat(np.arange(depth + 1), 2 ** np.arange(depth + 1))

    def init(key: Array, support: Embedded) -> dict[str, Any]:
        key_network, key_optimizer = jax.random.split(key)
        num, num_columns = support.features.shape
        weights = jax.random.normal(key_network, (len(FEATURES), hidden_size))
        head_params = {
            "log_smoothing": jnp.log(jnp.float32(smoothing)),
            "log_min_mass": jnp.log(jnp.float32(min_mass)),
            "log_penalty": jnp.float32(0),
            "log_temperature": jnp.log(jnp.float32(temperature)),
            "log_sharpness": jnp.log(jnp.float32(sharpness)),
            "depth_gates": jnp.full(depth, 2.0, jnp.float32),
            "gate_weights": jnp.zeros(len(FEATURES)),
            "weights_in": weights / len(FEATURES) ** 0.5,
            "bias": jnp.zeros(hidden_size),
            "weights_out": jnp.zeros(hidden_size),
        }
        if same_columns:
            head_params["columns"] = jnp.zeros((num_splits, num_columns))
        if isinstance(inner_optimizer, LearnedOptimizer):
            moves = _no_moves(num_splits, num * num_columns)
            head_params["optimizer"] = inner_optimizer.init(key_optimizer, moves)
        return head_params

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[SoftTree, dict[str, Array]]:
        tree = _grow(head_params, support, levels)
        optimizer = inner_optimizer
        if isinstance(optimizer, LearnedOptimizer):
            optimizer = optimizer.build(head_params["optimizer"])

        def loss(moves: PyTree, args: tuple, key: Array | None) -> Array:
            tree, support = args
            return _support_loss(_moved(tree, moves), support.is_real, levels)

        moves = _no_moves(*tree.scores.shape)
        result = unroll(
            loss,
            optimizer,
            moves,
            (tree, support),
            inner_steps=inner_steps,
            gradient=gradient,
            key=key,
        )
        tree = _moved(tree, result.params)
        reach, _ = _routes(*_choices(tree, tree.rows), levels)
        probabilities = _probabilities(tree, reach, levels)
        return tree._replace(probabilities=probabilities), {}

    def classify(
        head_params: PyTree,
        tree: SoftTree,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del head_params, mask, key
        _, stop = _routes(*_choices(tree, features), levels)
        return _logits(stop @ tree.probabilities)

    learner = head_learner(table_rows("soft_tree"), Head(fit, classify, init), way=way)

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        adapted = learner.adapt(meta_params, task.support, key=key_adapt)
        value, metrics = query_score(
            learner.predict, adapted, task.query, cross_entropy, key_predict
        )
        query = task.query
        rows = hide_padding(query.x, query.mask)
        level = jnp.asarray(level_of_node, adapted.fitted.rows.dtype)
        _, stop = _routes(*_choices(adapted.fitted, rows), levels)
        tree = harden(adapted)
        leaf = leaf_of(tree, rows)
        is_right = accuracy(tree.probabilities[leaf], query.y)
        metrics |= {
            "hard_accuracy": masked_mean(is_right, query.mask),
            "expected_depth": masked_mean(stop @ level, query.mask),
            "hard_depth": masked_mean(level[leaf], query.mask),
        }
        return value, metrics

    return learner._replace(loss=loss)


def harden(adapted: Fitted) -> DecisionTree:
    """Builds the axis-aligned tree that a soft tree comes to.

    Each node keeps its best split among those whose leaves are heavy enough, and is a
    leaf where its gate is below 1/2, or where no split is left. Classes are those of
    the support rows that end there, smoothed towards the parent's as in the soft tree.
    Where the soft tree's gates, mixtures and sigmoids are nearly 0 or 1, both agree.

    Args:
      adapted: what `adapt` of `soft_tree` gave for one task.

    Returns:
      A tree for rows in the units of the support rows: `decide` answers, `print` shows
      it, `metajax.plots.plot_tree` draws it, and its `in_units` undoes a
      standardisation.
    """
    check_instances(Fitted, "give what `adapt` of a `soft_tree` gave", adapted=adapted)
    check_instances(SoftTree, "give that of a `soft_tree`", adapted=adapted.fitted)
    tree: SoftTree = adapted.fitted
    levels = level_slices(tree.gates.shape[0].bit_length())
    best = jnp.argmax(jnp.where(tree.is_allowed, tree.scores, _NEVER), axis=1)
    column = best % tree.rows.shape[1]
    threshold = tree.thresholds.reshape(-1)[best]
    left = (tree.rows[:, column] <= threshold[None, :]).astype(tree.rows.dtype)
    reach, _ = _routes(left, jnp.ones_like(tree.gates), levels)
    mass = jnp.sum(tree.one_hot.T @ reach, axis=0)
    # Inner steps may have changed the splits above those whose leaves were weighed.
    lighter = jnp.minimum(mass[1::2], mass[2::2])
    is_heavy = (lighter > 0) & (lighter >= tree.min_mass - 0.5)
    is_split = is_heavy & (tree.gates > 0) & jnp.any(tree.is_allowed, axis=1)
    # Below a leaf nothing splits.
    is_reached, kept = jnp.ones(1, bool), []
    for place in levels:
        kept.append(is_reached & is_split[place])
        is_reached = jnp.repeat(kept[-1], 2)
    probabilities = _probabilities(tree, reach, levels)
    return DecisionTree(column, threshold, jnp.concatenate(kept), probabilities, mass)


# Growing.


def _grow(numbers: dict[str, Any], support: Embedded, levels: list[slice]) -> SoftTree:
    """Scores and gates before the first inner step, level by level."""
    rows, one_hot, is_real = support
    num, num_columns = rows.shape
    candidates = candidate_splits(rows, is_real)
    smooth, min_mass, penalty, temperature, sharpness = (
        jnp.exp(numbers[f"log_{name}"])
        for name in ("smoothing", "min_mass", "penalty", "temperature", "sharpness")
    )
    mass = is_real[None, :].astype(rows.dtype)
    all_scores, all_allowed, all_gates = [], [], []
    for level, place in enumerate(levels):
        features, gain, lighter, exists = describe_splits(mass, support, candidates)
        # The network, and the mean of the features under the mixture.
        bias = numbers["bias"][None, None, None, :]
        hidden_size = jnp.tanh(features @ numbers["weights_in"] + bias)
        scores = sharpness * gain + hidden_size @ numbers["weights_out"]
        excess = 4 * (lighter - (min_mass - 0.5))
        scores += penalty * jax.nn.log_sigmoid(excess)
        if "columns" in numbers:
            scores += _columns(numbers, num_columns)[place][:, None, :]
        scores = jnp.where(exists, scores, _NEVER).reshape(len(mass), -1)
        mixture = _mixture(scores)
        mean = jnp.einsum(
            "mc,mcf->mf", mixture, features.reshape(*scores.shape, len(FEATURES))
        )
        gates = numbers["depth_gates"][level] + mean @ numbers["gate_weights"]
        allowed = (exists & (excess >= 0)).reshape(scores.shape)
        all_scores.append(scores)
        all_gates.append(gates)
        all_allowed.append(allowed)
        # Down the best split to the next level.
        best = jnp.argmax(jnp.where(allowed, scores, _NEVER), axis=1)
        goes_left = candidates.is_left.reshape(num, -1)[:, best].T
        mass = jnp.stack([mass * goes_left, mass * ~goes_left], 1).reshape(-1, num)
    return SoftTree(
        rows,
        one_hot,
        candidates.scale,
        candidates.thresholds,
        jnp.concatenate(all_scores),
        jnp.concatenate(all_allowed),
        jnp.concatenate(all_gates),
        temperature,
        smooth,
        min_mass,
        probabilities=jnp.zeros((2 * levels[-1].stop + 1, one_hot.shape[1])),
    )


def _columns(numbers: dict[str, Any], num_columns: int) -> Array:
    columns = numbers["columns"]
    if columns.shape[1] != num_columns:
        raise ValueError(
            f"The columns' scores were made for {columns.shape[1]} columns, and these "
            f"rows have {num_columns}; give all tasks the same columns, or use "
            "`same_columns=False`."
        )
    return columns


# Answering.


def _choices(tree: SoftTree, rows: Array) -> tuple[Array, Array]:
    """Probabilities of rows `[q, D]` to go left in each node `[q, M]`, and gates."""
    mixture = _mixture(tree.scores)
    return _sigmoids(tree, rows) @ mixture.T, _gates(tree)


def _sigmoids(tree: SoftTree, rows: Array) -> Array:
    """Probabilities `[q, T * D]` of rows `[q, D]` to go left at each candidate."""
    distance = tree.thresholds[None, :, :] - rows[:, None, :]
    width = tree.temperature * tree.scale
    return jax.nn.sigmoid(distance / width[None, None, :]).reshape(len(rows), -1)


def _mixture(scores: Array) -> Array:
    """Softmax over the last axis; 0 where nothing is above minus infinity."""
    is_any = jnp.any(scores > _NEVER, axis=-1, keepdims=True)
    return jnp.where(is_any, jax.nn.softmax(jnp.where(is_any, scores, 0), axis=-1), 0)


def _gates(tree: SoftTree) -> Array:
    return jnp.where(
        jnp.any(tree.scores > _NEVER, axis=1), jax.nn.sigmoid(tree.gates), 0
    )


def _routes(left: Array, gates: Array, levels: list[slice]) -> tuple[Array, Array]:
    """Where rows pass, and where they stop.

    Args:
      left: `[q, M]`, probabilities to go left.
      gates: `[M]`, to go on.
      levels: of the nodes.

    Returns:
      `[q, 2M + 1]` each: the probability to pass through a node or stop in it, if there
      were no gates; and that to stop in it, which adds up to 1.
    """
    reach = arrive = jnp.ones((len(left), 1), left.dtype)
    reaches, stops = [], []
    for place in levels:
        reaches.append(reach)
        stops.append(arrive * (1 - gates[place])[None, :])
        sides = jnp.stack([left[:, place], 1 - left[:, place]], axis=-1)
        arrive = arrive * gates[place][None, :]
        reach, arrive = (
            (mass[..., None] * sides).reshape(len(left), -1) for mass in (reach, arrive)
        )
    return jnp.concatenate([*reaches, reach], 1), jnp.concatenate([*stops, arrive], 1)


def _probabilities(tree: SoftTree, reach: Array, levels: list[slice]) -> Array:
    """Q `[2M + 1, N]` from what support rows reach `[n, 2M + 1]`."""
    is_present = jnp.sum(tree.one_hot, axis=0) > 0
    prior = is_present / jnp.maximum(jnp.sum(is_present), 1)
    counts = tree.one_hot.T @ reach
    mass = jnp.sum(counts, axis=0, keepdims=True)
    return _smoothed(counts, mass, prior, tree.smoothing, levels).T


def _support_loss(tree: SoftTree, is_real: Array, levels: list[slice]) -> Array:
    """Mean loss of the support rows, each without its own count in the leaves."""
    reach, stop = _routes(*_choices(tree, tree.rows), levels)
    counts = tree.one_hot.T @ reach
    of_own_class = tree.one_hot @ counts - reach
    others = jnp.sum(counts, axis=0)[None, :] - reach
    num_present = jnp.maximum(jnp.sum(jnp.sum(tree.one_hot, axis=0) > 0), 1)
    prior = jnp.full(len(reach), 1 / num_present, reach.dtype)
    # Of padding these mean nothing, and rounding may take them below 0.
    of_own_class, others = jnp.maximum(of_own_class, 0), jnp.maximum(others, 0)
    of_leaf = _smoothed(of_own_class, others, prior, tree.smoothing, levels)
    return masked_mean(-_logits(jnp.sum(stop * of_leaf, axis=1)), is_real)


def _smoothed(
    counts: Array, mass: Array, prior: Array, smoothing: Array, levels: list[slice]
) -> Array:
    """Shares `[k, 2M + 1]`, each drawn to its parent's.

    Args:
      counts: `[k, 2M + 1]`, of some class in each node.
      mass: `[k or 1, 2M + 1]`, of all classes.
      prior: `[k]`, the share that the root is drawn to.
      smoothing: rows that the parent counts for.
      levels: of the nodes but the last ones.
    """
    above, shares = prior[:, None], []
    last = slice(levels[-1].stop, None)
    for place in [*levels, last]:
        share = counts[:, place] + smoothing * above
        share /= mass[:, place] + smoothing
        shares.append(share)
        above = jnp.repeat(share, 2, axis=1)
    return jnp.concatenate(shares, axis=1)


def _logits(probabilities: Array) -> Array:
    return jnp.log(jnp.maximum(probabilities, 1e-30))


def _no_moves(num_splits: int, num_candidates: int) -> dict[str, Array]:
    """Where the inner loop starts: what it adds to scores and gates."""
    return {
        "scores": jnp.zeros((num_splits, num_candidates)),
        "gates": jnp.zeros(num_splits),
    }


def _moved(tree: SoftTree, moves: dict[str, Array]) -> SoftTree:
    return tree._replace(
        scores=tree.scores + moves["scores"], gates=tree.gates + moves["gates"]
    )

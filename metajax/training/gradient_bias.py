"""How far each estimator of the outer gradient is from the exact one, and at what cost.

    def make(gradient):
        return maml(model, optax.sgd(0.1), inner_steps=10, gradient=gradient)

    comparison = compare_gradients(candidates(make, num_tasks=16), meta_params, tasks)
    print(comparison)
    plot_gradients("gradients.png", comparison)

For your own learner and tasks, at meta-parameters of your choice: estimators that agree
at the start of training may not at its end, where the gradient is small.
"""

import statistics
import time as clock
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metajax.checks import (
    check_batch,
    check_functions,
    check_instances,
    check_integers,
    check_keys,
    check_mappings,
    check_parts,
    check_seed,
    named_if_other,
)
from metajax.compute.program_costs import mebibytes, planned_memory
from metajax.filters import partition
from metajax.inner.unroll import GradientMode
from metajax.training.outer_gradients import evolution_strategies, pes, truncated
from metajax.training.outer_loop import reverse_mode
from metajax.types import Array, Learner, OuterGradient, PyTree, TaskDistribution

__all__ = [
    "Candidate",
    "GradientComparison",
    "GradientRow",
    "candidates",
    "compare_gradients",
]


class Candidate(NamedTuple):
    """One way to the outer gradient.

    Attributes:
      learner: gives the loss, in the gradient mode to compare.
      outer_gradient: takes its gradient; None for reverse mode.
      calls: outer steps that make one whole estimate: the number of pieces of the inner
        loop for an estimator that takes it in pieces, else 1.
    """

    learner: Learner
    outer_gradient: OuterGradient | None = None
    calls: int = 1


class GradientRow(NamedTuple):
    """What was found of one candidate.

    Attributes:
      name: of the candidate.
      cosine: with the reference, of one estimate; mean over repeats, in [-1, 1].
      cosine_half_width: half-width of its 95 % interval over repeats.
      cosine_of_mean: of the mean of all estimates: what is left is bias, or noise that
        more repeats would average out.
      norm: Euclidean, of one estimate as a fraction of that of the reference; mean over
        repeats.
      seconds: of one outer step after compilation; median over all.
      memory: bytes that XLA plans for one outer step.
    """

    name: str
    cosine: float
    cosine_half_width: float
    cosine_of_mean: float
    norm: float
    seconds: float
    memory: int


class GradientComparison(NamedTuple):
    """What `compare_gradients` found; `print` shows it as a table.

    Attributes:
      rows: one for each candidate, in their order.
      reference: name of the candidate that the others are compared with.
      num_tasks: tasks of a step.
      repeats: estimates of each candidate.
    """

    rows: tuple[GradientRow, ...]
    reference: str
    num_tasks: int
    repeats: int

    def __str__(self) -> str:
        """A table with a line for each candidate."""
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"compared with {self.reference!r}, {self.num_tasks} tasks a step, "
            f"{self.repeats} estimates each",
            f"{'':{width}}  {'cosine':>15}  {'of mean':>7}  {'norm':>7}  "
            f"{'ms a step':>9}  memory",
        ]
        for row in self.rows:
            cosine = f"{row.cosine:.3f} ± {row.cosine_half_width:.3f}"
            lines.append(
                f"{row.name:{width}}  {cosine:>15}  {row.cosine_of_mean:7.3f}  "
                f"{row.norm:7.3g}  {1000 * row.seconds:9.3g}  {mebibytes(row.memory)}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return self._asdict() | {"rows": [row._asdict() for row in self.rows]}


def candidates(
    make: Callable[[GradientMode], Learner],
    *,
    num_tasks: int,
    piece: int | None = None,
    sigma: float = 0.01,
    num_pairs: int = 1,
) -> dict[str, Candidate]:
    """Builds the usual candidates of a learner.

    Args:
      make: builds the learner in one of `metajax.inner.unroll.GRADIENT_MODES`.
      num_tasks: tasks of a step.
      piece: inner steps of a piece, for the estimators that take pieces; None takes the
        largest proper divisor of the learner's steps, and no such estimator if there
        is none.
      sigma: noise of the evolution strategies.
      num_pairs: antithetic pairs a task of the one that takes the whole loop.

    Returns:
      `"exact"`, `"first order"`, `"ES"`, and for a learner with `segments` also
      `"truncated"` and `"PES"`. Add your own: `| {"mine": Candidate(...)}`.

    Raises:
      ValueError: as the estimators.
    """
    check_functions(
        ("gradient",), "`lambda gradient: maml(..., gradient=gradient)`", make=make
    )
    if piece is not None:
        check_integers(1, piece=piece)
    check_integers(1, num_tasks=num_tasks)
    learner = make("remat")
    found = {
        "exact": Candidate(learner),
        "first order": Candidate(make("first_order")),
        "ES": Candidate(
            learner, evolution_strategies(sigma=sigma, num_pairs=num_pairs)
        ),
    }
    if learner.segments is None:
        return found
    steps = learner.segments.inner_steps
    if piece is None:
        divisors = [d for d in range(1, steps) if steps % d == 0]
        if not divisors:
            return found
        piece = divisors[-1]
    with warnings.catch_warnings():
        # How little `truncated` gives a learned start is what the comparison shows.
        warnings.simplefilter("ignore", UserWarning)
        cut = truncated(learner, inner_steps=piece, num_tasks=num_tasks)
    persistent = pes(learner, inner_steps=piece, num_tasks=num_tasks, sigma=sigma)
    calls = steps // piece
    return found | {
        "truncated": Candidate(learner, cut, calls),
        "PES": Candidate(learner, persistent, calls),
    }


def compare_gradients(
    candidates: Mapping[str, Candidate],
    meta_params: PyTree,
    tasks: TaskDistribution,
    *,
    num_tasks: int,
    repeats: int = 10,
    reference: str = "exact",
    seed: int = 0,
) -> GradientComparison:
    """Compares estimators of the outer gradient at given meta-parameters.

    All see the same tasks. Each estimate has random keys of its own, and the reference
    is the mean of its estimates: its own row tells how much of a deviation is due to
    the learner's randomness.

    Args:
      candidates: by name; see `candidates`. Their learners share `meta_params`.
      meta_params: where the gradient is taken.
      tasks: a task distribution.
      num_tasks: tasks of a step.
      repeats: estimates of each candidate, at least 2.
      reference: the name of the exact one.
      seed: of tasks and keys.

    Returns:
      A `GradientComparison`.

    Raises:
      ValueError: if the reference is no candidate, a number is out of range, or the
        gradient of the reference is 0 or not finite.
    """
    check_mappings(candidates=candidates)
    instead = "`metajax.outer_gradients.candidates` builds them"
    for name, candidate in candidates.items():
        check_instances(Candidate, instead, **{f"candidates[{name!r}]": candidate})
    check_parts(tasks=tasks)
    check_seed(seed)
    if not isinstance(reference, str) or reference not in candidates:
        raise ValueError(
            f"`reference` must be one of the candidates, {list(candidates)}, got "
            f"{reference!r}."
        )
    check_integers(1, num_tasks=num_tasks)
    check_integers(2, repeats=repeats)
    check_keys(num_tasks=num_tasks)
    check_batch(jax.eval_shape(tasks, jax.random.key(seed)), num_tasks=num_tasks)
    key_tasks, key = jax.random.split(jax.random.key(seed))
    batch = jax.vmap(tasks)(jax.random.split(key_tasks, num_tasks))
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    measured = {}
    for name, candidate in candidates.items():
        with named_if_other(candidate.learner.init, first, meta_params=meta_params):
            measured[name] = _measure(
                candidate, meta_params, batch, key, num_tasks, repeats
            )
    exact = measured[reference][0].mean(axis=0)
    size = np.linalg.norm(exact)
    if not (np.isfinite(size) and size > 0):
        raise ValueError(
            f"The gradient of {reference!r} has the norm {size}, so nothing can be "
            "compared with it; choose other `meta_params`."
        )
    rows = []
    for name, (estimates, seconds, memory) in measured.items():
        cosines = np.array([_cosine(estimate, exact) for estimate in estimates])
        rows.append(
            GradientRow(
                name,
                float(cosines.mean()),
                float(1.96 * cosines.std(ddof=1) / np.sqrt(repeats)),
                _cosine(estimates.mean(axis=0), exact),
                float(np.linalg.norm(estimates, axis=1).mean() / size),
                seconds,
                memory,
            )
        )
    return GradientComparison(tuple(rows), reference, num_tasks, repeats)


def _measure(
    candidate: Candidate,
    meta_params: PyTree,
    batch: PyTree,
    key: Array,
    num_tasks: int,
    repeats: int,
) -> tuple[np.ndarray, float, int]:
    """Estimates `[repeats, P]`, seconds of a step, and bytes."""
    learner, outer_gradient, calls = candidate
    check_integers(1, calls=calls)
    if outer_gradient is None:
        outer_gradient = reverse_mode()

    def step(meta_params: PyTree, keys: Array, state: PyTree) -> tuple[Array, PyTree]:
        gradient, _, _, state = outer_gradient.gradient(
            learner.loss, meta_params, batch, keys, state
        )
        return ravel_pytree(partition(gradient)[0])[0], state

    def start(key: Array) -> PyTree:
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        state = outer_gradient.init(key, meta_params, first)
        # Without weak types, which would ask for a second program.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)

    keys = jax.random.split(key, num_tasks)
    program = jax.jit(step).lower(meta_params, keys, start(key)).compile()
    program(meta_params, keys, start(key))  # the first call is slower
    estimates, seconds = [], []
    for repeat in range(repeats):
        key_repeat = jax.random.fold_in(key, repeat)
        state, pieces = start(key_repeat), []
        # Loops in pieces start at different places: one round lets each begin anew.
        rounds = 2 * calls if calls > 1 else 1
        for call in range(rounds):
            keys = jax.random.split(jax.random.fold_in(key_repeat, call), num_tasks)
            began = clock.perf_counter()
            gradient, state = jax.block_until_ready(program(meta_params, keys, state))
            seconds.append(clock.perf_counter() - began)
            if call >= rounds - calls:
                pieces.append(np.asarray(gradient, float))
        estimates.append(np.mean(pieces, axis=0))
    memory, _ = planned_memory(program)
    return np.stack(estimates), statistics.median(seconds), memory


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    sizes = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / sizes) if sizes > 0 else 0.0

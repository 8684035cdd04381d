"""Regression on functions drawn from a Gaussian process, with the exact answer.

The benchmark of neural processes: M. Garnelo et al., "Conditional Neural Processes",
ICML 2018, https://arxiv.org/abs/1807.01613, section 4.1. What a learner could know at
best is known here in closed form (C. E. Rasmussen, C. K. I. Williams, "Gaussian
Processes for Machine Learning", MIT Press 2006, Eqs. (2.23) to (2.26) and chapter 4):

    y = f(x) + noise e,   f ~ GP(0, k),   e ~ N(0, 1)

    kernel       k(x, x'), with s the scale, l the length scale, r = |x - x'|
    rbf          s^2 exp(-r^2 / (2 l^2))
    matern52     s^2 (1 + a + a^2 / 3) exp(-a),   a = sqrt(5) r / l
    periodic     s^2 exp(-2 sum over inputs of sin^2(pi (x - x') / p) / l^2)

    p(y_* | S) = N(K_*S (K_SS + noise^2 I)^-1 y_S,
                   K_** + noise^2 I - K_*S (K_SS + noise^2 I)^-1 K_S*)

Support S and query are points of the same noisy function, at inputs uniform in
`x_range`. No learner that answers each target by itself has a higher expected log
likelihood than the marginals of `exact_posterior`; its `joint` is what one could have
that lets targets depend on each other.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metajax.checks import (
    check_choice,
    check_instances,
    check_integers,
    check_parts,
    check_ranges,
    is_number,
)
from metajax.distributions import Gaussian, log_likelihood
from metajax.tasks.sizes import as_range, size_masks
from metajax.types import Array, Examples, Task

__all__ = [
    "KERNELS",
    "GaussianProcess",
    "HyperParameters",
    "Posterior",
    "covariance",
    "exact_posterior",
    "gaussian_process",
]

Kernel = Literal["rbf", "matern52", "periodic"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

# Of noise and scale: with less, the Cholesky factor of 100 points has NaN in float32.
_LEAST_RATIO = 0.01


class HyperParameters(NamedTuple):
    """Those of the process that one task is drawn from, scalars.

    Attributes:
      length_scale: l, above 0.
      scale: s, standard deviation of f, above 0.
      period: p of the periodic kernel, above 0; without effect on others.
    """

    length_scale: Array
    scale: Array
    period: Array


class Posterior(NamedTuple):
    """What is known of query targets, exactly.

    Attributes:
      marginals: of every target by itself, noise included; mean and scale `[n, 1]`.
      log_likelihood: `[n]`, log density of each target under its marginal, in nats.
      joint: scalar, log density of all real targets together.
    """

    marginals: Gaussian
    log_likelihood: Array
    joint: Array


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """The distribution that `gaussian_process` builds; its fields are the arguments.

    Ranges are `(low, high)` here. It holds no arrays: as a pytree it has no leaves and
    is static under `jit`.
    """

    kernel: Kernel
    length_scale: tuple[float, float]
    scale: tuple[float, float]
    period: tuple[float, float]
    noise: float
    shot: tuple[int, int]
    num_queries: int
    num_inputs: int
    x_range: tuple[float, float]

    def __call__(self, key: Array, /) -> Task:
        """Draws one function and its points; the key is consumed.

        Args:
          key: a typed random key.

        Returns:
          A task whose `support` has `x` float32 `[K, D]` and `y` `[K, 1]`, with a mask
          if the number of points is a range, whose end is K; and whose `query` has them
          `[Q, D]` and `[Q, 1]`.
        """
        _, key_size, key_x, key_y = jax.random.split(key, 4)
        num, (low, high) = self.shot[1], self.x_range
        shape = (num + self.num_queries, self.num_inputs)
        x = jax.random.uniform(key_x, shape, jnp.float32, low, high)
        k = covariance(self.kernel, self.hyperparameters(key), x, x)
        factor = _cholesky(k + self.noise**2 * jnp.eye(len(x)))
        y = factor @ jax.random.normal(key_y, (len(x), 1), jnp.float32)
        # Of a task with fewer points the others were never seen, so they do not matter.
        mask, _ = size_masks(key_size, (1, 1), self.shot, self.num_queries)
        return Task(Examples(x[:num], y[:num], mask), Examples(x[num:], y[num:]))

    def hyperparameters(self, key: Array) -> HyperParameters:
        """Draws the hyperparameters of the task that this key gives."""
        ranges = (self.length_scale, self.scale, self.period)
        keys = jax.random.split(jax.random.split(key, 4)[0], len(ranges))
        return HyperParameters(
            *(
                jax.random.uniform(key, (), jnp.float32, *bounds)
                for key, bounds in zip(keys, ranges, strict=True)
            )
        )


def gaussian_process(
    *,
    kernel: Kernel = "rbf",
    length_scale: float | tuple[float, float] = 0.6,
    scale: float | tuple[float, float] = 1.0,
    period: float | tuple[float, float] = 1.0,
    noise: float = 0.1,
    shot: int | tuple[int, int] = (1, 10),
    num_queries: int = 50,
    num_inputs: int = 1,
    x_range: tuple[float, float] = (-2.0, 2.0),
) -> GaussianProcess:
    """Builds regression tasks whose functions are draws of a Gaussian process.

    Choose it to see how near a learner that predicts distributions comes to the exact
    posterior, and whether it knows how little it knows between the points.

    Args:
      kernel: one of `KERNELS`.
      length_scale: l, above 0, or a range `(low, high)` that each task draws its own
        from, uniformly; then no learner is told which.
      scale: s, above 0, likewise.
      period: p, above 0, likewise; for the periodic kernel only.
      noise: standard deviation of the noise on all targets, at least a hundredth of the
        largest scale, as the factor of the covariance is not finite in float32 else.
      shot: support points of a task, K, at least 1; or an inclusive range, uniform, up
        to whose end tasks are padded.
      num_queries: query points of a task, Q, at least 1.
      num_inputs: D, at least 1.
      x_range: `(low, high)` of all inputs.

    Returns:
      A task distribution: `(key) -> Task`.

    Raises:
      ValueError: if `kernel` is unknown or a number is out of range.

    Example:
      >>> task = gaussian_process(shot=(3, 9))(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((9, 1), (50, 1))
    """
    check_choice(KERNELS, kernel=kernel)
    check_integers(1, num_queries=num_queries, num_inputs=num_inputs)
    check_ranges(x_range=x_range)
    scales = _positive_range("scale", scale)
    if not is_number(noise) or not _LEAST_RATIO * scales[1] <= noise < math.inf:
        raise ValueError(
            f"`noise` must be at least {_LEAST_RATIO * scales[1]:g}, a hundredth of "
            f"`scale`, and finite, got {noise!r}; with less the covariance has no "
            "Cholesky factor in float32."
        )
    return GaussianProcess(
        kernel=kernel,
        length_scale=_positive_range("length_scale", length_scale),
        scale=scales,
        period=_positive_range("period", period),
        noise=float(noise),
        shot=as_range("shot", shot),
        num_queries=num_queries,
        num_inputs=num_inputs,
        x_range=(float(x_range[0]), float(x_range[1])),
    )


def covariance(
    kernel: Kernel, hyperparameters: HyperParameters, a: Array, b: Array
) -> Array:
    """Computes k(a_i, b_j) without noise, `[m, n]`, of inputs `[m, D]` and `[n, D]`.

    Args:
      kernel: one of `KERNELS`.
      hyperparameters: of the process.
      a: inputs.
      b: inputs.
    """
    length_scale, scale, period = hyperparameters
    difference = a[:, None] - b[None]
    if kernel == "periodic":
        waves = jnp.sum(jnp.square(jnp.sin(jnp.pi * difference / period)), axis=-1)
        return scale**2 * jnp.exp(-2 * waves / length_scale**2)
    squares = jnp.sum(jnp.square(difference), axis=-1) / length_scale**2
    if kernel == "rbf":
        return scale**2 * jnp.exp(-squares / 2)
    distance = jnp.sqrt(5 * squares)
    return scale**2 * (1 + distance + distance**2 / 3) * jnp.exp(-distance)


def exact_posterior(
    tasks: GaussianProcess,
    support: Examples,
    query: Examples,
    hyperparameters: HyperParameters | None = None,
) -> Posterior:
    """Tells what the process says of query targets, given the support set: the referee.

    Args:
      tasks: where the task comes from.
      support: its points `[K, D]` and `[K, 1]`; may be empty.
      query: its points `[n, D]` and `[n, 1]`. Only the two log likelihoods depend on
        targets.
      hyperparameters: of the task's process; None takes those that all tasks have. With
        `tasks.hyperparameters(key)`, the referee knows more than a learner can.

    Returns:
      The `Posterior`.

    Raises:
      ValueError: if there are none given and tasks differ in theirs.
    """
    if hyperparameters is not None:
        instead = "`tasks.hyperparameters(key)` gives them"
        check_instances(HyperParameters, instead, hyperparameters=hyperparameters)
    check_instances(GaussianProcess, "`gaussian_process` makes one", tasks=tasks)
    check_parts(support=support, query=query)
    if hyperparameters is None:
        hyperparameters = _common(tasks)
    in_support, in_query = support.is_real, query.is_real
    noise = tasks.noise**2

    def between(a: Examples, b: Examples) -> Array:
        k = covariance(tasks.kernel, hyperparameters, a.x, b.x)
        # `where` rather than a product: what stands in padding may be anything.
        return jnp.where(a.is_real[:, None] & b.is_real[None], k, 0)

    # A point of padding is one that goes with no other and is 0.
    y = jnp.where(in_support[:, None], support.y, 0)
    of_support = between(support, support) + jnp.diag(jnp.where(in_support, noise, 1))
    factor = jnp.linalg.cholesky(of_support)
    both = jnp.concatenate([between(support, query), y], axis=1)
    solved = jax.scipy.linalg.solve_triangular(factor, both, lower=True)
    gain, seen = solved[:, :-1], solved[:, -1:]
    mean = gain.T @ seen
    of_query = between(query, query) + jnp.diag(jnp.where(in_query, noise, 1))
    of_query -= gain.T @ gain
    marginals = Gaussian(mean, jnp.sqrt(jnp.diag(of_query))[:, None])

    target = jnp.where(in_query[:, None], query.y, 0)
    factor = jnp.linalg.cholesky(of_query)
    standard = jax.scipy.linalg.solve_triangular(factor, target - mean, lower=True)
    joint = -jnp.sum(jnp.square(standard)) / 2 - jnp.sum(jnp.log(jnp.diag(factor)))
    joint -= jnp.sum(in_query) * math.log(2 * math.pi) / 2
    return Posterior(marginals, log_likelihood(marginals, target), joint)


def _cholesky(k: Array) -> Array:
    """The lower factor of a positive matrix, one row of the upper at a time.

    Not by `jnp.linalg`, for draws: on CPU that is LAPACK, whose batches may wait for
    ever where each device draws its own tasks; see `metajax.inner.solvers.solve`.
    """
    places = jnp.arange(len(k))

    def add(i: Array, upper: Array) -> Array:
        row = k[i] - upper[:, i] @ upper
        row = jnp.where(places >= i, row / jnp.sqrt(row[i]), 0)
        return upper.at[i].set(row)

    return jax.lax.fori_loop(0, len(k), add, jnp.zeros_like(k)).T


def _common(tasks: GaussianProcess) -> HyperParameters:
    """What all tasks have."""
    names = ["length_scale", "scale"] + ["period"] * (tasks.kernel == "periodic")
    for name in names:
        low, high = getattr(tasks, name)
        if low != high:
            raise ValueError(
                f"Tasks differ in `{name}`, from {low:g} to {high:g}, so that there is "
                "no one posterior; give `hyperparameters`, such as "
                "`tasks.hyperparameters(key)` of the key of the task."
            )
    ranges = (tasks.length_scale, tasks.scale, tasks.period)
    return HyperParameters(*(jnp.float32(low) for low, _ in ranges))


def _positive_range(
    name: str, value: float | tuple[float, float]
) -> tuple[float, float]:
    low, high = value if isinstance(value, tuple) and len(value) == 2 else (value,) * 2
    are_numbers = is_number(low) and is_number(high)
    if not are_numbers or not 0 < low <= high < math.inf:
        raise ValueError(
            f"`{name}` must be a number above 0 or a range `(low, high)` of such with "
            f"low <= high, got {value!r}."
        )
    return float(low), float(high)

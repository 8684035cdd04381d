"""The contract: what a task, a model and a learner are, and where gradients come from.

Every meta-learning method is one `Learner`: a tuple of pure functions that speak of
*one* task. Batches of tasks are made by `jax.vmap` in the outer loop and nowhere else.
Axis letters used in all docstrings: `B` tasks, `n` examples of one set, `N` way,
`K` shot, `Q` queries per class, `D` embedding size, `C` outputs.

A pre-training stage is another learner, and an adversarial objective a `loss` of two
groups of parameters: neither needs more than is here (CONTRIBUTING.md shows both).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

__all__ = [
    "Adapt",
    "Apply",
    "Array",
    "Collect",
    "CommandLine",
    "Embedding",
    "Examples",
    "Filter",
    "Init",
    "InitModel",
    "Learner",
    "Loss",
    "NO_STREAM",
    "Metrics",
    "Model",
    "Objective",
    "OuterGradient",
    "Predict",
    "PyTree",
    "ScheduledLoss",
    "Segments",
    "Stream",
    "Task",
    "TaskDistribution",
    "Way",
]

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
"""Scalars to report, by name."""
Objective = Callable[[PyTree, PyTree], Array]
"""`(outputs, y) -> [n]`, the loss of every example; both are `[n, ...]`."""
Filter = Callable[[str], bool]
"""Whether a parameter is chosen, by its path such as `"params/head/kernel"`."""
Way = int | Literal["support"]
"""The most classes of a task, or as many as there are support examples."""


class Examples(NamedTuple):
    """A set of examples, possibly padded so that sets of other sizes share one shape.

    Attributes:
      x: inputs, a pytree of arrays `[n, ...]`.
      y: targets, a pytree of arrays `[n, ...]`; class labels are integers in [0, N).
      mask: bool `[n]`, True where the example is real and False where it is padding, or
        None when all are real. Padding changes no loss, prototype, statistic or metric.
    """

    x: PyTree
    y: PyTree
    mask: Array | None = None

    def __repr__(self) -> str:
        return _sizes(self)

    @property
    def is_real(self) -> Array:
        """Bool `[n]`: the mask, or True everywhere if there is none."""
        if self.mask is not None:
            return self.mask
        return jnp.ones(jax.tree.leaves(self.x)[0].shape[0], bool)


class Task(NamedTuple):
    """What a learner adapts to, and what it is judged on afterwards.

    Attributes:
      support: what `Learner.adapt` sees: `Examples` of a supervised task, the
        parameters of an environment in reinforcement learning, or any other pytree.
      query: what `Learner.loss` and the evaluation judge by, likewise.
    """

    support: PyTree
    query: PyTree

    def __repr__(self) -> str:
        return _sizes(self)


def _sizes(parts: Any) -> str:
    """What a named tuple holds in one line, arrays by type and shape."""

    def size(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", None)
        return leaf if shape is None else _Words(f"{leaf.dtype}{list(shape)}")

    fields = [
        f"{name}={jax.tree.map(size, value)!r}"
        for name, value in zip(parts._fields, parts, strict=True)
        if name != "mask" or value is not None
    ]
    return f"{type(parts).__name__}({', '.join(fields)})"


class _Words(str):
    """Text that is shown without quotes, as a leaf of what is shown."""

    def __repr__(self) -> str:
        return str(self)


class TaskDistribution(Protocol):
    """A pure function from a random key to one task.

    It may be any callable. One that holds arrays (a table of images) should be a pytree
    with a `__call__` method, so that `jit` receives the arrays as arguments; arrays in
    the closure of a plain function are copied into every compiled program instead.

    It may also have a method `at(step) -> TaskDistribution`, for tasks that change as
    training goes on (streams, curricula): the trainer then draws the tasks of outer
    step `step`, an int32 scalar that may be traced, from `at(step)`. Called directly,
    such a distribution draws what a referee should judge.
    """

    def __call__(self, key: Array, /) -> Task:
        """Draws one task; the key is consumed."""


# A model.


class InitModel(Protocol):
    """Makes the parameters of a model."""

    def __call__(self, key: Array, x: PyTree, /) -> PyTree:
        """Draws parameters for example inputs `[n, ...]`; the key is consumed."""


class Apply(Protocol):
    """Answers inputs with the parameters of a model."""

    def __call__(
        self,
        params: PyTree,
        x: PyTree,
        /,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        """Gives outputs `[n, ...]` for inputs `[n, ...]`.

        `mask`, bool `[n]`, marks the real rows of `x` and matters only to models that
        mix rows (statistics over the batch); `key` drives dropout and the like, and
        None means deterministic.
        """


class Model(NamedTuple):
    """A network as pure functions of its parameters. It keeps no state.

    Attributes:
      init: `(key, x) -> params`.
      apply: `(params, x, *, mask=None, key=None) -> outputs`.
      statistics: as `apply`, but returns the same parameters with the normalisation
        statistics of `x` frozen into them, so that `apply` uses these in place of those
        of its own batch. None if the model has no such statistics.
      normalization: which statistics `apply` normalises by, for learners and reports;
        one of `metajax.models.normalization.NORMALIZATIONS`. Only `"support"` changes
        what learners do: they end `adapt` by freezing the support set's statistics.
    """

    init: InitModel
    apply: Apply
    statistics: Apply | None = None
    normalization: str = "none"


Embedding = Annotated[Model, "without a head for the classes"]
"""A model whose outputs are embeddings, which a learner classifies by itself."""


# A learner.


class Init(Protocol):
    """Makes what the outer loop learns."""

    def __call__(self, key: Array, task: Task, /) -> PyTree:
        """Draws meta-parameters in the shapes that `task` asks for."""


class Adapt(Protocol):
    """Learns one task."""

    def __call__(
        self, meta_params: PyTree, support: PyTree, /, *, key: Array | None = None
    ) -> PyTree:
        """Gives what the support set teaches; a key of None means deterministic."""


class Predict(Protocol):
    """Answers the queries of one task."""

    def __call__(
        self,
        adapted: PyTree,
        inputs: PyTree,
        /,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        """Answers all query inputs `[n, ...]` at once.

        `mask`, bool `[n]`, marks the real rows, for transductive methods.
        """


class Loss(Protocol):
    """What the outer loop minimises, of one task."""

    def __call__(
        self, meta_params: PyTree, task: Task, /, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        """Gives a scalar and scalars to report."""


class ScheduledLoss(Protocol):
    """An objective that changes as training goes on."""

    def __call__(
        self,
        step: Array,
        meta_params: PyTree,
        task: Task,
        /,
        *,
        key: Array | None = None,
    ) -> tuple[Array, Metrics]:
        """As `Loss`, after `step` outer steps, an int32 scalar."""


class Collect(Protocol):
    """Gathers the experience of one task with the meta-parameters as they are."""

    def __call__(
        self, meta_params: PyTree, task: Task, /, *, key: Array | None = None
    ) -> Task:
        """Gives the task that `Loss` then sees, whose numbers are constants to it."""


class Segments(NamedTuple):
    """The inner loop of a learner in pieces, for gradients that see one at a time.

    Attributes:
      inner_steps: of the whole loop.
      start: `(meta_params, task, key) -> state`, before the first inner step.
      advance: `(meta_params, task, state, key, inner_steps) -> (state, loss)`, takes
        further `inner_steps`, a divisor of the whole. The mean of `loss` over all
        pieces of one length is `Learner.loss`.
      learns_start: whether what `start` gives is learned.
    """

    inner_steps: int
    start: Callable[[PyTree, Task, Array | None], PyTree]
    advance: Callable[[PyTree, Task, PyTree, Array | None, int], tuple[PyTree, Array]]
    learns_start: bool = False


class Stream(NamedTuple):
    """A learner that reads its support set one example at a time.

    Examples may come as they will, and `Learner.predict` may be asked at any time; what
    is remembered has a bounded size.

    Attributes:
      start: `(meta_params) -> adapted`, which has seen no example yet.
      observe: `(adapted, x, y) -> (adapted, outputs)` for one example, inputs `[...]`
        and target `[...]`: the answer `[...]` to the input, given before its target
        was seen, and what is known with the target. `Learner.adapt` is this for every
        example of a support set in turn.
    """

    start: Callable[[PyTree], PyTree]
    observe: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def _no_stream(*args: Any) -> Any:
    raise ValueError(
        "This learner has no stream: it reads whole support sets, by `Learner.adapt`. "
        "`mann`, `lstm_learner`, `sgdstore`, `snail`, `mm_net`, and `in_context` with "
        "a `context`, read one example after another."
    )


NO_STREAM = Stream(_no_stream, _no_stream)
"""That of learners which read whole support sets; its functions raise a ValueError."""


class Learner(NamedTuple):
    """A meta-learning method: pure functions of one task.

    A key of None asks for deterministic behaviour; a method without randomness ignores
    it. `meta_params` and `adapted` are arbitrary pytrees.

    Attributes:
      init: `(key, task) -> meta_params`, what the outer loop learns.
      adapt: `(meta_params, support, *, key=None) -> adapted`, what one task teaches.
      predict: `(adapted, inputs, *, mask=None, key=None) -> outputs`, answers for all
        query inputs at once.
      loss: `(meta_params, task, *, key=None) -> (loss, metrics)`, what the outer loop
        minimises for one task.
      adapt_steps: None, or as `adapt` but returning every intermediate state, with a
        leading axis `[steps + 1, ...]` whose entry 0 has learned nothing yet. It gives
        evaluation its curves over inner steps, or over examples read one by one.
      scheduled_loss: None, or as `loss` but with the number of outer steps taken as its
        first argument. `loss` is then what it becomes in the end.
      segments: None, or the inner loop in pieces.
      stream: how it reads one example at a time, or `NO_STREAM`.
      collect: None, or `(meta_params, task, *, key=None) -> task`, called once an outer
        step, before the updates of that step: what reinforcement learning does with the
        policies as they are. `loss` then sees the task that it returns, which may be of
        another structure, and no gradient passes through it. `adapt` and the evaluation
        see the task as the distribution draws it.
    """

    init: Init
    adapt: Adapt
    predict: Predict
    loss: Loss
    adapt_steps: Adapt | None = None
    scheduled_loss: ScheduledLoss | None = None
    segments: Segments | None = None
    stream: Stream = NO_STREAM
    collect: Collect | None = None


# The outer gradient.


class OuterGradient(NamedTuple):
    """Where the outer gradient comes from; reverse mode through `loss` by default.

    Attributes:
      init: `(key, meta_params, task) -> gradient_state`, `()` for a stateless one; the
        task gives shapes only.
      gradient: `(loss, meta_params, tasks, keys, state) -> (gradient, loss, metrics,
        state)` for tasks and keys with a leading axis `[B]`: `gradient` has the
        structure of `meta_params`, and all three are means over the `B` tasks.
    """

    init: Callable[[Array, PyTree, Task], PyTree]
    gradient: Callable[
        [Loss, PyTree, Task, Array, PyTree], tuple[PyTree, Array, Metrics, PyTree]
    ]


class CommandLine(NamedTuple):
    """A note for `Annotated`: the default of an argument on the command line.

    Attributes:
      default: a JSON value; for an inner optimizer, arguments of
        `metajax.command_line.forms.InnerOptimizer`.
    """

    default: Any

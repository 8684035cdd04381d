"""Learners whose network learns as it reads labelled examples, one after another.

    state_0 = start(theta)
    outputs_t = answer(theta, state_{t-1}, f(x_t))              before y_t is known
    state_t = what `step` makes of state_{t-1}, f(x_t) and y_t

f is a model that all tasks share, theta what the outer loop learns of the `Reader`.
`adapt` reads a support set from `state_0`, and `predict` answers every query from the
state after it, so that queries do not see one another. All that a task teaches is in
the state: no gradient is taken when a task is learned.

Read as a stream:

    adapted = learner.stream.start(meta_params)
    adapted, outputs = learner.stream.observe(adapted, x, y)    as examples come
    learner.predict(adapted, inputs)                            at any time

`metajax.evaluation.prequential` judges learners so.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import flax.errors
import jax
import jax.numpy as jnp

from metajax.builders.targets import check_targets, choose_objective
from metajax.checks import check_choice, check_parts
from metajax.filters import float_type
from metajax.masks import hide_padding, masked_mean
from metajax.objectives import (
    accuracy,
    class_vectors,
    example_losses,
    query_score,
    split_key,
)
from metajax.types import (
    NO_STREAM,
    Array,
    Examples,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Stream,
    Task,
)

__all__ = [
    "TRAINS_ON",
    "AdaptedStream",
    "Reader",
    "StreamParams",
    "shuffled",
    "stream_learner",
]

TrainsOn = Literal["query", "sequence"]
TRAINS_ON: tuple[TrainsOn, ...] = get_args(TrainsOn)


class Reader(NamedTuple):
    """A network that reads vectors and their labels, also vectors.

    Attributes:
      init: `(key, features [D], label [C]) -> params`.
      start: `(params) -> state`, before any example.
      answer: `(params, state, features [D]) -> outputs [C]`.
      step: `(params, state, features [D], label [C]) -> (state, outputs [C])`; outputs
        are those of `answer`. None if it only reads whole sets.
      read: None, or `(params, features [n, D], labels [n, C], mask [n] or None) ->
        (state, outputs [n, C])`: what `step` makes of all examples in turn, at once.
        Without `step` the outputs are None.
    """

    init: Callable[[Array, Array, Array], PyTree]
    start: Callable[[PyTree], PyTree]
    answer: Callable[[PyTree, PyTree, Array], Array]
    step: Callable[[PyTree, PyTree, Array, Array], tuple[PyTree, Array]] | None
    read: (
        Callable[[PyTree, Array, Array, Array | None], tuple[PyTree, Array | None]]
        | None
    ) = None


class StreamParams(NamedTuple):
    """What is learned.

    Attributes:
      embedding: parameters of the model.
      reader: those of the reader.
    """

    embedding: PyTree
    reader: PyTree


class AdaptedStream(NamedTuple):
    """What one task teaches.

    Attributes:
      meta_params: as they were.
      state: of the reader, after the examples that it saw.
    """

    meta_params: StreamParams
    state: PyTree


def stream_learner(
    model: Model,
    reader: Reader,
    *,
    way: int | None,
    num_outputs: int | None,
    objective: Objective | None,
    trains_on: TrainsOn,
) -> Learner:
    """Builds a learner from an embedding and a reader.

    A key of `adapt` draws the order in which the support set is read; without one it is
    read as it stands. Examples that a mask hides are stepped over.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`, which is flattened. It may
        not mix examples: a later one would change what an earlier one was.
      reader: what reads.
      way: classes of a task, N, so that a label becomes one-hot; give it or
        `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.
      trains_on: `"query"`: the loss of the queries; `"sequence"`: of every example of
        the support set before its label is seen as well, all with the same weight.

    Returns:
      A learner whose `meta_params` are `StreamParams` and whose `adapted` are
      `AdaptedStream`; it has a `stream` if the reader has a `step`. A label that is no
      class makes all outputs after it NaN. Its loss reports `sequence_accuracy` if it
      trains on sequences of labels.

    Raises:
      ValueError: if an argument is out of range, the model mixes examples, or it trains
        on sequences and its reader answers only after them; when it is used, if
        targets are not what it is built for, or inputs have another size than those
        that the parameters were made for.
    """
    objective = choose_objective(way, num_outputs, objective)
    check_parts(model=model)
    check_choice(TRAINS_ON, trains_on=trains_on)
    if model.normalization in ("batch", "support"):
        raise ValueError(
            f"The model has normalization={model.normalization!r}, by which a later "
            "example changes what earlier ones are; this learner reads one after "
            "another. Use 'layer', 'group', 'calibrated' or 'none'."
        )
    if trains_on == "sequence" and reader.step is None:
        raise ValueError(
            "trains_on='sequence' needs an answer to each example before its label, "
            "and this learner reads the whole support set at once; train on 'query'."
        )

    def embed(params: PyTree, x: PyTree, mask: Array | None, key: Array | None):
        features = hide_padding(model.apply(params, x, mask=mask, key=key), mask)
        return features.reshape(features.shape[0], math.prod(features.shape[1:]))

    def vectors(y: Array, mask: Array | None) -> Array:
        check_targets(y, way, num_outputs, size=math.prod(y.shape[1:]))
        y = hide_padding(y, mask)
        if way is None:
            return y.reshape(y.shape[0], math.prod(y.shape[1:]))
        return class_vectors(y, way)

    def init(key: Array, task: Task) -> StreamParams:
        key_model, key_reader = jax.random.split(key)
        x, y, mask = task.support
        params = model.init(key_model, x)
        # Shapes alone: a support set may be empty.
        features = jax.eval_shape(lambda: embed(params, x, mask, None))
        labels = jax.eval_shape(lambda: vectors(y, mask))
        one = (jnp.zeros(s.shape[1:], s.dtype) for s in (features, labels))
        return StreamParams(params, reader.init(key_reader, *one))

    def read(
        meta_params: StreamParams, support: Examples, key: Array | None
    ) -> tuple[AdaptedStream, Array | None]:
        """Gives the state after reading the support set, and the answers `[n, C]`.

        The answers are those given while reading.
        """
        features = embed(meta_params.embedding, support.x, support.mask, key)
        labels = vectors(support.y, support.mask)
        features, labels = _as_read(meta_params, features, labels)
        of_all = meta_params.reader, features, labels, support.mask
        in_turn = functools.partial(_scan, reader)
        with _about_sizes():
            state, outputs = (reader.read or in_turn)(*of_all)
        return AdaptedStream(meta_params, state), outputs

    def adapt(
        meta_params: StreamParams, support: Examples, *, key: Array | None = None
    ) -> AdaptedStream:
        key_order, key_embed = split_key(key, 2)
        return read(meta_params, shuffled(support, key_order), key_embed)[0]

    def predict(
        adapted: AdaptedStream,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        params, state = adapted
        features = embed(params.embedding, inputs, mask, key)
        (features,) = _as_read(params, features)
        with _about_sizes():
            return jax.vmap(reader.answer, (None, None, 0))(
                params.reader, state, features
            )

    def loss(
        meta_params: StreamParams, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_order, key_embed, key_predict = split_key(key, 3)
        support, query = shuffled(task.support, key_order), task.query
        adapted, outputs = read(meta_params, support, key_embed)
        value, metrics = query_score(predict, adapted, query, objective, key_predict)
        if trains_on == "query":
            return value, metrics
        assert outputs is not None
        if way is not None:
            metrics["sequence_accuracy"] = masked_mean(
                accuracy(outputs, support.y), support.mask
            )
        # Sums, as an empty support set has no mean, and no weight.
        y = hide_padding(support.y, support.mask)
        losses = hide_padding(example_losses(objective, outputs, y), support.mask)
        num_support, num_query = _num_real(support), _num_real(query)
        total = jnp.sum(losses) + num_query * value
        return total / (num_support + num_query), metrics

    stream = NO_STREAM
    if reader.step is not None:
        step = reader.step

        def start(meta_params: StreamParams) -> AdaptedStream:
            return AdaptedStream(meta_params, reader.start(meta_params.reader))

        def observe(
            adapted: AdaptedStream, x: PyTree, y: Array
        ) -> tuple[AdaptedStream, Array]:
            params, state = adapted
            _check_label(y, way, num_outputs)
            x, y = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (x, y))
            features, label = embed(params.embedding, x, None, None), vectors(y, None)
            features, label = _as_read(params, features, label)
            with _about_sizes():
                state, outputs = step(params.reader, state, features[0], label[0])
            return AdaptedStream(params, state), outputs

        stream = Stream(start, observe)
    return Learner(init, adapt, predict, loss, stream=stream)


def _as_read(params: StreamParams, *arrays: Array) -> list[Array]:
    """Arrays in the type of the reader's parameters, in which it keeps its state."""
    dtype = float_type(params.reader)
    return [array.astype(dtype) for array in arrays]


def _scan(
    reader: Reader, params: PyTree, features: Array, labels: Array, mask: Array | None
) -> tuple[PyTree, Array]:
    step = reader.step
    assert step is not None

    def advance(
        state: PyTree, example: tuple[Array, Array, Array | None]
    ) -> tuple[PyTree, Array]:
        features, label, is_real = example
        new, outputs = step(params, state, features, label)
        if is_real is not None:
            new = jax.tree.map(lambda n, o: jnp.where(is_real, n, o), new, state)
        return new, outputs

    return jax.lax.scan(advance, reader.start(params), (features, labels, mask))


def shuffled(examples: Examples, key: Array | None) -> Examples:
    """Examples in random order, or as they stand for a key of None."""
    if key is None:
        return examples
    order = jax.random.permutation(key, examples.y.shape[0])
    return jax.tree.map(lambda leaf: leaf[order], examples)


def _num_real(examples: Examples) -> Array | int:
    mask = examples.mask
    return examples.y.shape[0] if mask is None else jnp.sum(mask)


def _check_label(y: Array, way: int | None, num_outputs: int | None) -> None:
    """Raises a ValueError unless `y` is the target of one example.

    Values are looked at where they are known, as outside of `jit`.
    """
    shape = jnp.shape(y)
    if way is not None and shape != ():
        raise ValueError(
            f"`observe` takes one example, whose label is a scalar `[]`, got shape "
            f"{list(shape)}; leave out the axis of examples, as in x[0], y[0], or give "
            "a batch to `Learner.adapt`."
        )
    if num_outputs is not None and math.prod(shape) != num_outputs:
        raise ValueError(
            f"`observe` takes one example, whose target has `num_outputs` numbers, "
            f"{num_outputs}, got shape {list(shape)}."
        )
    if way is not None and not isinstance(y, jax.core.Tracer) and not 0 <= y < way:
        raise ValueError(
            f"A label must be one of the {way} classes, 0 to {way - 1}, got {y}; build "
            "the learner with a larger `way`."
        )


@contextmanager
def _about_sizes() -> Iterator[None]:
    try:
        yield
    except flax.errors.ScopeParamShapeError as error:
        raise ValueError(
            "Inputs or targets have another size than those that the parameters were "
            f"made for; give the same number of features in all sets. `predict` "
            f"and `adapt` take batches `[n, ...]`, `observe` one example. {error}"
        ) from error

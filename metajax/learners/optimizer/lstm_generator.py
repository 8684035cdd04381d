"""An LSTM that reads a task and generates the parameters of another network.

The combination is ours and has no published number. Its parts:

* generated weights: D. Ha, A. Dai, Q. Le, "HyperNetworks", ICLR 2017,
  https://arxiv.org/abs/1609.09106. There a recurrent network makes another's weights
  anew at every time step; here it makes them once for a task, from its support set
  (`metajax.builders.weight_generators`);
* an average over examples as the code of a set, so that their order does not matter;
* inner steps from what is generated, as MAML takes them from one initialisation:
  C. Finn, P. Abbeel, S. Levine, ICML 2017, https://arxiv.org/abs/1703.03400.

    code    c = mean over the support set of h_T,  h = LSTM([x_1, y_1] .. [x_T, y_T])
    start   phi_0 = theta + V^T c, or theta + V^T (U^T c) with a `rank`
    inner   phi_{t+1} = phi_t + u_t(grad L_support(phi_t)),  `inner_steps` times
    outer   min over theta, V, U and the LSTM of the mean over tasks of  L_query(phi_T)

theta is `meta_params.base`, V and U `meta_params.generator`, the LSTM
`meta_params.encoder`. V starts small, so that phi_0 is about theta: learning starts
from MAML. With `inner_steps=0` it is a hypernetwork, and with V = 0 MAML.

It is one of two things that are called Meta-LSTM; the other is an LSTM whose cell state
are the parameters, `metajax.learners.optimizer.meta_lstm`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.builders.descent import (
    InnerOptimizer,
    check_descent,
    learner_of_start,
)
from metajax.builders.targets import check_targets, choose_objective
from metajax.builders.weight_generators import check_generator, generate, init_generator
from metajax.checks import check_parts, check_sizes
from metajax.filters import everything, partition
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.unroll import GradientMode
from metajax.models.adapters import from_linen
from metajax.models.recurrent import RecurrentLSTM
from metajax.objectives import class_vectors
from metajax.types import (
    Array,
    Examples,
    Filter,
    Learner,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["LSTMGeneratorParams", "as_sequences", "lstm_generator"]


class LSTMGeneratorParams(NamedTuple):
    """What is learned.

    Attributes:
      base: parameters of the model.
      encoder: parameters of the LSTM that reads the support set.
      generator: V and U; see `metajax.builders.weight_generators`.
      optimizer: parameters of a `LearnedOptimizer`, else None.
    """

    base: PyTree
    encoder: PyTree
    generator: dict[str, Array]
    optimizer: PyTree


def lstm_generator(
    model: Model,
    inner_optimizer: InnerOptimizer,
    *,
    inner_steps: int,
    eval_inner_steps: int | None = None,
    hidden_sizes: Sequence[int] = (64,),
    rank: int | None = None,
    way: int | None = None,
    num_outputs: int | None = None,
    offset_scale: float = 0.01,
    objective: Objective | None = None,
    gradient: GradientMode = "remat",
    generates: Filter = everything,
    adapts: Filter = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds the generator of parameters.

    Choose it for tasks of sequences whose hidden parameters a reader can tell, where
    gradient steps from one initialisation are too few to get there. The generator has
    `hidden[-1]` numbers for each generated parameter: for large models give a `rank`,
    or generate some of them.

    Args:
      model: the network, such as `metajax.models.lstm`; any model of arrays `[n, T,
        F]`, or of inputs without a time axis.
      inner_optimizer: what adapts what is generated, such as `optax.sgd(0.1)`, or a
        `LearnedOptimizer`.
      inner_steps: inner steps in training, at least 0.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      hidden_sizes: sizes of the layers of the LSTM that reads the support set.
      rank: None for a full matrix from code to parameters, or the rank of one of low
        rank, from 1 to `hidden[-1]`.
      way: the number of classes, N, if targets are labels, read as one-hot; give it or
        `num_outputs`.
      num_outputs: length of the last axis of targets that are real numbers.
      offset_scale: size of an offset V^T c at first, for codes of unit size; above 0,
        as the generator could not learn from 0 at both of its sides.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      generates: which parameters have an offset; see `metajax.filters`.
      adapts: which parameters the inner steps adapt.
      check_mixed: see `metajax.inner.unroll.unroll`.

    Returns:
      A learner whose `meta_params` are `LSTMGeneratorParams` and whose `adapted` are
      parameters of `model`. Its loss reports `support_loss_t` for up to 11 inner steps
      t.

    Raises:
      ValueError: if a number is out of range; when it is used, if targets are not
        what it is built for.
      TypeError: if `inner_optimizer` is no optimizer.

    Example:
      >>> import optax
      >>> from metajax.learners import lstm_generator
      >>> from metajax.models import lstm
      >>> model, optimizer = lstm(1), optax.sgd(0.1)
      >>> learner = lstm_generator(model, optimizer, inner_steps=1, num_outputs=1)
    """
    check_parts(model=model, generates=generates, adapts=adapts)
    objective = choose_objective(way, num_outputs, objective)
    check_descent(
        inner_optimizer, gradient, inner_steps, eval_inner_steps, may_be_learned=True
    )
    check_sizes(fewest=1, hidden_sizes=hidden_sizes)
    size = hidden_sizes[-1]
    check_generator(size, rank, offset_scale)
    encoder = from_linen(RecurrentLSTM(tuple(hidden_sizes)))

    def start(meta_params: LSTMGeneratorParams, support: Examples) -> PyTree:
        """Generates phi_0."""
        read = as_sequences(support, way, num_outputs)
        last = encoder.apply(meta_params.encoder, read, mask=support.mask)[:, -1]
        where = None if support.mask is None else support.mask[:, None]
        code = jnp.mean(last, axis=0, where=where)
        return generate(meta_params.generator, meta_params.base, code, generates)

    def init(key: Array, task: Task) -> LSTMGeneratorParams:
        key_base, key_encoder, key_generator, key_optimizer = jax.random.split(key, 4)
        base = model.init(key_base, task.support.x)
        generator = init_generator(
            key_generator,
            base,
            size=size,
            rank=rank,
            offset_scale=offset_scale,
            generates=generates,
        )
        learned = None
        if isinstance(inner_optimizer, LearnedOptimizer):
            learned = inner_optimizer.init(key_optimizer, partition(base, adapts)[0])
        reader = encoder.init(key_encoder, as_sequences(task.support, way, num_outputs))
        return LSTMGeneratorParams(base, reader, generator, learned)

    return learner_of_start(
        model,
        init,
        start,
        inner_optimizer,
        objective=objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        gradient=gradient,
        adapts=adapts,
        check_mixed=check_mixed,
    )


def as_sequences(examples: Examples, way: int | None, num_outputs: int | None) -> Array:
    """Inputs and targets side by side, `[n, T, F]`.

    Arrays `[n, T, F]` are sequences, and so are integer labels `[n, T]` beside them.
    Anything else is flattened and stands at every step: at the only one if neither
    inputs nor targets are sequences. Integer targets are labels below `way` and become
    one-hot.

    Raises:
      ValueError: if targets are not what the learner is built for, if inputs or targets
        are not one array each, or if both are sequences and their lengths differ.
    """
    for name, leaf in (("x", examples.x), ("y", examples.y)):
        if getattr(leaf, "ndim", 0) < 1:
            raise ValueError(
                f"The LSTM that reads the support set needs `{name}` as one array "
                f"`[n, ...]`, got {type(leaf).__name__}."
            )
    x, y = examples.x, examples.y
    check_targets(y, way, num_outputs, size=y.shape[-1] if y.ndim > 1 else 1)
    if way is not None:
        y = class_vectors(y, way)
    parts = [
        leaf if leaf.ndim == 3 else leaf.reshape(len(leaf), 1, -1) for leaf in (x, y)
    ]
    lengths = {part.shape[1] for part in parts} - {1}
    if len(lengths) > 1:
        raise ValueError(
            f"Inputs and targets have {sorted(lengths)} time steps; they must have as "
            "many as each other, or one of them a single one."
        )
    length = max(lengths, default=1)
    rows = [jnp.broadcast_to(p, (len(p), length, p.shape[2])) for p in parts]
    return jnp.concatenate(rows, axis=-1)

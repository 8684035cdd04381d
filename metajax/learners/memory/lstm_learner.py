"""An LSTM that learns from examples as they come, in its own state.

S. Hochreiter, A. Younger, P. Conwell, "Learning to Learn Using Gradient Descent", ICANN
2001: a recurrent network that is given each input together with the target of the one
before learns, across many tasks, to learn in its activations. The cell is that of
`metajax.models.recurrent`. It is the baseline of memory-augmented networks, which have
an external memory beside it (`metajax.learners.memory.mann`).
"""

from metajax.builders.controllers import ExternalMemory, with_controller
from metajax.builders.streams import TrainsOn, stream_learner
from metajax.checks import check_parts
from metajax.types import Embedding, Learner, Objective

__all__ = ["lstm_learner"]


def lstm_learner(
    model: Embedding,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    hidden_size: int = 200,
    trains_on: TrainsOn = "sequence",
    objective: Objective | None = None,
) -> Learner:
    """Builds the LSTM without external memory.

    Choose it as a baseline, or where little must be remembered.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`.
      way: classes of a task, N; give it or `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      hidden_size: units of the LSTM.
      trains_on: `"sequence"`, the loss of every example before its label is seen, and
        of the queries; or `"query"`, of these alone.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner with a `stream`; see `metajax.builders.streams.stream_learner`. The
      order of the support set matters.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import lstm_learner
      >>> from metajax.models import identity
      >>> learner = lstm_learner(identity(), way=5)
    """
    check_parts(model=model)
    nothing = ExternalMemory(
        num_commands=0,
        num_reads=0,
        init=lambda key: {},
        start=lambda params: (),
        update=lambda params, state, commands: (state, commands),
    )
    reader = with_controller(nothing, hidden_size=hidden_size)
    return stream_learner(
        model,
        reader,
        way=way,
        num_outputs=num_outputs,
        objective=objective,
        trains_on=trains_on,
    )

"""Conditional neural processes: the mean of encoded points is the whole memory.

M. Garnelo, D. Rosenbaum, C. J. Maddison, T. Ramalho, D. Saxton, M. Shanahan, Y. W. Teh,
D. J. Rezende, S. M. A. Eslami, "Conditional Neural Processes", ICML 2018,
https://arxiv.org/abs/1807.01613, section 2.

    r_i = phi([x_i, y_i])                                                     Eq. (1)
    r   = mean over i of r_i                                                  Eq. (2)
    mean, raw = decode([x, r]),   scale = m + (1 - m) softplus(raw)           Eq. (3)
    loss = - mean over the query of log N(y; mean, scale^2)                   Eq. (4)

m is `min_scale`. Differs from the paper: the loss is over query points alone, where the
paper's targets hold the context too; give those as queries to have them there.
"""

import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.neural_processes import (
    Decoder,
    check_network,
    neural_process,
    pair_layers,
)
from metajax.distributions import Gaussian
from metajax.models.deep_sets import set_mean
from metajax.types import Array, Learner

__all__ = ["conditional_np"]


class _Network(nn.Module):
    num_outputs: int
    size: int
    encoder_layers: int
    decoder_layers: int
    min_scale: float

    def setup(self) -> None:
        self.phi = pair_layers(self.size, self.encoder_layers)
        self.decoder = Decoder(
            self.num_outputs, self.size, self.decoder_layers, self.min_scale
        )

    def encode(self, x: Array, y: Array, is_real: Array) -> Array:
        """Computes the mean r `[size]`, 0 of an empty set."""
        return set_mean(self.phi(jnp.concatenate([x, y], axis=1)), is_real)  # Eq. (2)

    def decode(self, x: Array, context: Array, z: None) -> Gaussian:
        del z
        return self.decoder(x, context)  # Eq. (3)


def conditional_np(
    *,
    num_outputs: int = 1,
    code_size: int = 128,
    encoder_layers: int = 4,
    decoder_layers: int = 2,
    min_scale: float = 0.1,
) -> Learner:
    """Builds conditional neural processes.

    Choose it where many tasks must be answered at once, with bands of uncertainty: the
    support set becomes a single vector, whatever its size. It underfits: predictions
    miss support points even where these are exact. `attentive_np` and `transformer_np`
    do better, for more time.

    Args:
      num_outputs: d, numbers of a target.
      code_size: of r, and units of hidden layers; 128 in the paper.
      encoder_layers: of phi, at least 1, the last one linear.
      decoder_layers: hidden layers of the decoder, at least 1.
      min_scale: below which no predicted standard deviation is, in (0, 1); 0.1 is that
        of the official code, too much where the noise is less.

    Returns:
      A learner for tasks with real targets `[n, d]`. `predict` gives a `Gaussian`, mean
      and scale `[n, d]`; see `metajax.builders.neural_processes`. A support set may be
      empty.

    Raises:
      ValueError: if an argument is out of range; in all four functions, if targets or
        inputs have other shapes than `num_outputs` and `init` say.

    Example:
      >>> import jax
      >>> from metajax.learners import conditional_np
      >>> from metajax.tasks import gaussian_process
      >>> learner, tasks = conditional_np(), gaussian_process()
      >>> task = tasks(jax.random.key(0))
      >>> meta_params = learner.init(jax.random.key(1), task)
      >>> adapted = learner.adapt(meta_params, task.support)
      >>> mean, scale = learner.predict(adapted, task.query.x)
    """
    check_network(
        min_scale=min_scale,
        num_outputs=num_outputs,
        code_size=code_size,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
    )
    network = _Network(
        num_outputs, code_size, encoder_layers, decoder_layers, min_scale
    )
    return neural_process(network, num_outputs=num_outputs)

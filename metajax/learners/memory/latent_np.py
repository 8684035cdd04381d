"""Neural processes: a random latent, so that samples are whole functions.

M. Garnelo, J. Schwarz, D. Rosenbaum, F. Viola, D. J. Rezende, S. M. A. Eslami,
Y. W. Teh, "Neural Processes", 2018, https://arxiv.org/abs/1807.01622, section 2.

    s = mean over i of phi([x_i, y_i]),   z ~ q(z | s) = N(mu(s), sigma(s)^2)
    p(y | x, z) = N(mean, scale^2),   mean, raw = decode([x, z])
    loss = - bound / |T|,   S the support set, T the query set:
    bound = E over q(z | S u T) of sum over T of log p(y | x, z)
            - KL(q(z | S u T) || q(z | S))

The bound is one on log p(y_T | x_T, S) of the model whose z is distributed as
q(z | S); samples of z are reparametrised. sigma lies in (0.1, 1), and scale is
`min_scale` + (1 - `min_scale`) softplus(raw), both as in the official code. Differs
from the paper: T are the query points alone, where the paper's targets hold the context
too.

Predictions are a mixture over `num_samples` draws of z ~ q(z | S), which `adapt` makes:
the likelihood of a target is log mean over z of p(y | x, z), a sample of the predictive
density that is as good as there are samples. `metajax.distributions` has also the joint
likelihood of all targets, and the mean and scale of the mixture.
"""

import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.neural_processes import (
    Decoder,
    Latent,
    check_network,
    neural_process,
    pair_layers,
)
from metajax.distributions import Gaussian
from metajax.types import Array, Learner

__all__ = ["latent_np"]


class _Network(nn.Module):
    num_outputs: int
    size: int
    encoder_layers: int
    decoder_layers: int
    min_scale: float

    def setup(self) -> None:
        self.phi = pair_layers(self.size, self.encoder_layers)
        self.posterior = Latent(self.size)
        self.decoder = Decoder(
            self.num_outputs, self.size, self.decoder_layers, self.min_scale
        )

    def encode(self, x: Array, y: Array, is_real: Array) -> tuple[()]:
        """Gives nothing: all that is known of a task is in z."""
        del x, y, is_real
        return ()

    def latent(self, x: Array, y: Array, is_real: Array) -> Gaussian:
        return self.posterior(self.phi(jnp.concatenate([x, y], axis=1)), is_real)

    def decode(self, x: Array, context: tuple[()], z: Array) -> Gaussian:
        del context
        return self.decoder(x, z)


def latent_np(
    *,
    num_outputs: int = 1,
    code_size: int = 128,
    encoder_layers: int = 4,
    decoder_layers: int = 2,
    min_scale: float = 0.1,
    num_samples: int = 32,
    train_samples: int = 1,
) -> Learner:
    """Builds neural processes with a latent.

    Choose it over `conditional_np` where targets have to go together, as in samples of
    whole functions: one z explains all of them. Target by target its likelihood is
    rarely better.

    Args:
      num_outputs: d, numbers of a target.
      code_size: of z, and units of hidden layers; 128 in the papers.
      encoder_layers: of phi, at least 1, the last one linear.
      decoder_layers: hidden layers of the decoder, at least 1.
      min_scale: below which no predicted standard deviation is, in (0, 1); 0.1 is that
        of the official code, too much where the noise is less.
      num_samples: S, samples of z that `adapt` draws, at least 1.
      train_samples: samples of z for the bound, at least 1.

    Returns:
      A learner for tasks with real targets `[n, d]`. `predict` gives a `Mixture`, means
      and scales `[n, S, d]`; without a key for `adapt`, `[n, 1, d]` at the mean of
      q(z | S), in place of samples. See `metajax.builders.neural_processes`, also for
      what the loss reports. A support set may be empty.

    Raises:
      ValueError: if an argument is out of range; in all four functions, if targets or
        inputs have other shapes than `num_outputs` and `init` say.

    Example:
      >>> import jax
      >>> from metajax.learners import latent_np
      >>> from metajax.tasks import gaussian_process
      >>> from metajax.distributions import moments
      >>> learner, tasks = latent_np(), gaussian_process()
      >>> task = tasks(jax.random.key(0))
      >>> meta_params = learner.init(jax.random.key(1), task)
      >>> adapted = learner.adapt(meta_params, task.support, key=jax.random.key(2))
      >>> mean, scale = moments(learner.predict(adapted, task.query.x))
    """
    check_network(
        min_scale=min_scale,
        num_outputs=num_outputs,
        code_size=code_size,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
    )
    return neural_process(
        _Network(num_outputs, code_size, encoder_layers, decoder_layers, min_scale),
        num_outputs=num_outputs,
        has_latent=True,
        num_samples=num_samples,
        train_samples=train_samples,
    )

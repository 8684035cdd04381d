"""A learner with a closed form, and its tasks, small enough to train in milliseconds.

The loss of a task is L(phi) = 1/2 |phi - c|^2 with the centre c of its set. T inner
steps of rate a from theta on the support set give phi = s + (1 - a)^T (theta - s).
"""

import jax
import jax.numpy as jnp

from metajax.types import Examples, Learner, Task

DIM = 3
INNER_LR = 0.25


def sample(key):
    """Support and query centres are uniform in [-1, 1]; one example holds each."""
    support, query = jax.random.uniform(key, (2, 1, DIM), minval=-1, maxval=1)
    x = jnp.zeros((1, 1))
    return Task(Examples(x, support), Examples(x, query))


def quadratic(*, steps=2, noise=0.0):
    """`noise` scales what the learner draws from its key."""

    def init(key, task):
        return {"theta": jax.random.uniform(key, task.support.y.shape[1:])}

    def adapt(meta_params, support, *, key=None):
        phi = meta_params["theta"]
        if key is not None:
            phi = phi + noise * jax.random.uniform(key, phi.shape)
        for _ in range(steps):
            phi = phi - INNER_LR * (phi - support.y[0])
        return phi

    def predict(adapted, inputs, *, mask=None, key=None):
        return jnp.broadcast_to(adapted[None, :], (inputs.shape[0], DIM))

    def loss(meta_params, task, *, key=None):
        error = adapt(meta_params, task.support, key=key) - task.query.y[0]
        value = 0.5 * jnp.sum(error**2)
        return value, {"distance": jnp.sqrt(2 * value)}

    return Learner(init, adapt, predict, loss)


def same_bits(a, b):
    """Whether two pytrees have one structure, dtypes and bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in leaves)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from metajax.compute.program_costs import has_convolutions, slow_convolutions, work
from metajax.learners.gradient.maml import maml
from metajax.learners.metric.prototypical import prototypical
from metajax.models.adapters import from_linen
from metajax.models.convolution import Conv, convolve
from metajax.models.networks import conv4
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.few_shot import few_shot
from metajax.training.outer_loop import reverse_mode
from metajax.training.trainer import train

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7
IMAGES, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
FULL = 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)  # of a convolution with padding


def flops(fn, *args):
    return work(jax.make_jaxpr(fn)(*args).jaxpr).flops


def xla(x, w, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def powers(a, b):
    return jax.lax.scan(lambda c, _: (c, (c @ b).sum()), a, length=11)[1].sum()


def square(x, w):
    outputs = convolve(x, w)
    return (outputs * outputs).sum()


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (jnp.matmul, (A, B), PRODUCT),
        (jax.vmap(jnp.matmul, (None, 0)), (A, jnp.ones((4, 5, 7))), 4 * PRODUCT),
        (jax.jit(lambda a, b: jnp.exp(a @ b)), (A, B), PRODUCT + 21),
        (powers, (A, B), 11 * (PRODUCT + 21) + 11),
        (jax.checkpoint(jnp.matmul), (A, B), PRODUCT),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.ones((3, 7)))
         , (A, B), PRODUCT),
        (xla, (IMAGES, KERNEL), FULL),
        (convolve, (IMAGES, KERNEL), FULL),
        (functools.partial(xla, groups=3), (IMAGES, jnp.ones((3, 3, 1, 6))), FULL / 2),
        (jax.value_and_grad(square), (IMAGES, KERNEL), 2 * FULL + 5 * 512),
        (jax.value_and_grad(square, 1), (IMAGES, KERNEL), 2 * FULL + 5 * 512),
        (functools.partial(convolve, stride=2), (IMAGES, KERNEL), FULL / 4),
    ],
)  # fmt: skip
def test_flops_are_those_of_a_count_by_hand(fn, args, expected):
    assert flops(fn, *args) == expected


def test_bytes_are_those_of_the_operands():
    traffic = work(jax.make_jaxpr(powers)(A, B).jaxpr)
    assert traffic.bytes_moved == 11 * 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert traffic.intensity == traffic.flops / traffic.bytes_moved


@pytest.mark.parametrize(("steps", "expected"), [(1, 45.2e9), (5, 75.0e9)])
def test_second_order_maml_takes_what_was_counted_by_hand(key, steps, expected):
    """32 tasks of 5 support and 75 query images; per image 46.7 and 15.7 megaflops."""
    table = class_table(np.zeros((5, 16, 28, 28, 1), np.uint8))
    tasks = few_shot(table, way=5, shot=1, num_queries=15)
    learner = maml(conv4(5, pooling="stride"), optax.sgd(0.4), inner_steps=steps)
    params = jax.eval_shape(learner.init, key, jax.eval_shape(tasks, key))
    keys = jax.random.split(key, 32)

    def gradient(params):
        batch = jax.vmap(tasks)(keys)
        return reverse_mode(tasks_per_block=1).gradient(
            learner.loss, params, batch, keys, ()
        )

    recomputed = 32 * 5 * steps * 5.3e6  # `remat` runs the inner forward pass again
    assert flops(gradient, params) == pytest.approx(expected + recomputed, rel=0.1)


def has(fn, *args):
    return has_convolutions(jax.make_jaxpr(fn)(*args).jaxpr)


def test_convolutions_are_found_wherever_they_are():
    assert has(xla, IMAGES, KERNEL)
    assert has(jax.grad(lambda w: jax.jit(convolve)(IMAGES, w).sum()), KERNEL)
    assert has(lambda w: jax.lax.map(lambda x: convolve(x[None], w), IMAGES), KERNEL)
    assert not has(lambda a: (a @ B).astype(jnp.int32), A)  # convert is another thing


def slow(fn, *args, backend):
    return slow_convolutions(jax.make_jaxpr(fn)(*args).jaxpr, backend)


@pytest.mark.parametrize(("backend", "in_loop"), [("cpu", 1), ("gpu", 0)])
def test_slow_convolutions(backend, in_loop):
    kernels = jnp.stack([KERNEL] * 4)
    count = functools.partial(slow, backend=backend)
    assert count(xla, IMAGES, KERNEL) == 0
    assert count(jax.vmap(xla, (0, None)), jnp.stack([IMAGES] * 4), KERNEL) == 0
    assert count(jax.vmap(xla, (None, 0)), IMAGES, kernels) in (0, 1)  # one large one
    assert count(jax.vmap(xla), jnp.stack([IMAGES] * 4), kernels) == 1
    depthwise = functools.partial(xla, groups=3)
    assert count(depthwise, IMAGES, jnp.ones((3, 3, 1, 6))) == 0
    loop = lambda w: jax.lax.map(lambda x: xla(x[None], w), IMAGES)  # noqa: E731
    assert count(loop, KERNEL) == in_loop
    assert count(jax.vmap(convolve), jnp.stack([IMAGES] * 4), kernels) == 0


class SmallCNN(nn.Module):
    layer: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(self.layer(4, (3, 3))(x)).mean((1, 2)))


def quick_run(learner, **options):
    images = np.zeros((2, 4, 6, 6, 1), np.uint8)
    tasks = few_shot(class_table(images), way=2, shot=1, num_queries=1)
    options = {"steps": 1, "tasks_per_step": 2, "progress": False} | options
    train(learner, tasks, optax.sgd(0.1), **options)


@pytest.mark.parametrize("tasks_per_block", ["auto", None])
def test_training_with_slow_convolutions_says_so(tasks_per_block):
    learner = maml(from_linen(SmallCNN(nn.Conv)), optax.sgd(0.1), inner_steps=1)
    with pytest.warns(UserWarning, match="convolutions of this program will be slow"):
        quick_run(learner, tasks_per_block=tasks_per_block)
    # Warnings are errors here, so this says that there is none.
    quick_run(maml(from_linen(SmallCNN(Conv)), optax.sgd(0.1), inner_steps=1))
    quick_run(prototypical(from_linen(SmallCNN(nn.Conv))), tasks_per_block=None)

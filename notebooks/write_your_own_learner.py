# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# Installs metajax where it is missing, as on Colab; elsewhere this does nothing.
import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("metajax", "matplotlib")):
    print("Installing metajax ...")
    # %pip install -q "metajax[plots]"

# %% [markdown]
# # Write your own learner, bring your own data and network
#
# In metajax a method is one value, a `Learner`: pure functions that speak of **one**
# task.
#
# | function | what it does |
# |---|---|
# | `init(key, task)` | draws `meta_params`, what the outer loop learns |
# | `adapt(meta_params, support, key=...)` | learns `adapted` from one support set |
# | `predict(adapted, inputs, mask=..., key=...)` | answers all queries |
# | `loss(meta_params, task, key=...)` | what the outer loop minimises for one task |
#
# Trainer, evaluation, checkpoints and the rest know nothing else of a method. So a new
# one is a page of code, and this notebook writes that page: few-shot classification by
# **ridge regression on learned features**, after L. Bertinetto, J. F. Henriques,
# P. H. S. Torr, A. Vedaldi, "Meta-learning with differentiable closed-form solvers",
# ICLR 2019, https://arxiv.org/abs/1805.08136.

# %%
import os
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

from metajax import Examples, Learner, Model, Task, compare, evaluate, leakage, train
from metajax.evaluation import bank_task
from metajax.learners import prototypical
from metajax.models import conv4, from_linen
from metajax.objectives import cross_entropy, query_loss
from metajax.tasks import few_shot, from_arrays, glyphs, split_classes
from metajax.types import Array, PyTree

# Compiled programs are kept, so that the notebook starts quickly when it runs again.
if jax.config.jax_compilation_cache_dir is None:
    folder = os.path.join(tempfile.gettempdir(), "metajax-compiled")
    jax.config.update("jax_compilation_cache_dir", folder)

# With METAJAX_FAST=1 every training is tiny, to test that the notebook runs. Its
# numbers then mean nothing.
FAST = os.environ.get("METAJAX_FAST", "0") == "1"

# %% [markdown]
# ## The method
#
# A network $f$ embeds the support images as the rows of a matrix $X$. Their classes,
# one-hot, are the rows of $Y$. A linear classifier for the task has a closed form,
#
# $$ W = \arg\min_W \; \|XW - Y\|^2 + \lambda \|W\|^2
#      = X^\top (X X^\top + \lambda I)^{-1} Y, $$
#
# and a query with features $x$ gets the logits $s \, x W$. The second form of $W$ is
# cheap, as the matrix to invert has only as many rows as there are support examples.
# JAX differentiates through the solution, so the outer loop learns $f$, the
# regularisation $\lambda$ and the scale $s$ together. (The paper adds an offset to the
# logits, which is the same for all classes and so changes no softmax; it is left out
# here.)


# %%
class RidgeHead(NamedTuple):
    """What one task teaches: a linear classifier on top of the embedding."""

    meta_params: PyTree
    kernel: Array  # [D, N]
    is_present: Array  # bool [N], whether the class has a support example


def ridge(model: Model, *, way: int) -> Learner:
    """Few-shot classification by ridge regression on learned features."""

    def init(key: Array, task: Task) -> PyTree:
        return {
            "model": model.init(key, task.support.x),
            "log_ridge": jnp.zeros(()),
            "log_scale": jnp.log(5.0),
        }

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> RidgeHead:
        features = model.apply(
            meta_params["model"], support.x, mask=support.mask, key=key
        )
        one_hot = jax.nn.one_hot(support.y, way)
        if support.mask is not None:  # rows of zeros change neither W nor the counts
            features = jnp.where(support.mask[:, None], features, 0)
            one_hot = jnp.where(support.mask[:, None], one_hot, 0)
        gram = features @ features.T
        gram += jnp.exp(meta_params["log_ridge"]) * jnp.eye(len(gram))
        kernel = features.T @ jax.scipy.linalg.solve(gram, one_hot, assume_a="pos")
        return RidgeHead(meta_params, kernel, jnp.sum(one_hot, axis=0) > 0)

    def predict(
        adapted: RidgeHead,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        params = adapted.meta_params
        features = model.apply(params["model"], inputs, mask=mask, key=key)
        logits = jnp.exp(params["log_scale"]) * (features @ adapted.kernel)
        return jnp.where(adapted.is_present[None, :], logits, -jnp.inf)

    return Learner(init, adapt, predict, query_loss(adapt, predict, cross_entropy))


# %% [markdown]
# That is all of it. Some remarks:
#
# * `query_loss` makes the usual objective: adapt to the support set, then take the
#   cross-entropy on the query set. A method with another objective writes its own
#   `loss`.
# * There is no axis of tasks anywhere. The trainer adds it with `jax.vmap`.
# * `mask` says which examples are real where tasks of different sizes are padded to one
#   shape. Padding must change nothing.
# * `key` is for methods with randomness. Here it only reaches the network, for dropout.
#
# ## Test it before training it
#
# A learner is pure functions, so each of its claims can be checked on one task. Is the
# classifier really the minimum? NumPy solves the same problem as ordinary least squares
# on $X$ with rows of $\sqrt{\lambda} I$ below. And does padding change anything?

# %%
embedding = conv4(features=32, pooling="stride", normalization="layer")
learner = ridge(embedding, way=5)

training_tasks = glyphs(way=5, shot=5, num_queries=5, split="meta_train")
task = bank_task(training_tasks, 0)
meta_params = jax.jit(learner.init)(jax.random.key(0), task)
adapt = jax.jit(learner.adapt)
head = adapt(meta_params, task.support)

features = np.asarray(embedding.apply(meta_params["model"], task.support.x))
targets = np.eye(5)[np.asarray(task.support.y)]
num_features = features.shape[1]
expected, *_ = np.linalg.lstsq(
    np.concatenate([features, np.eye(num_features)]),  # lambda starts at 1
    np.concatenate([targets, np.zeros((num_features, 5))]),
)
np.testing.assert_allclose(head.kernel, expected, atol=1e-4)

x, y, _ = task.support
padded = Examples(
    jnp.concatenate([x, jnp.ones_like(x)]),
    jnp.concatenate([y, y]),
    jnp.arange(2 * len(y)) < len(y),  # the second half is not real
)
np.testing.assert_allclose(head.kernel, adapt(meta_params, padded).kernel, atol=1e-4)
print("closed form and mask are right")

# %% [markdown]
# ## Train it, and a rival
#
# Both learners get the same network, tasks, steps and seed. `train` takes any learner
# and any Optax optimizer. Given a `run_dir` it also keeps checkpoints, writes metrics
# and a learning curve, and resumes after an interruption; here it only trains.

# %%
num_steps = 10 if FAST else 400
learners = {"ridge": learner, "prototypical": prototypical(embedding, way=5)}

results = {}
for name, method in learners.items():
    print(f"--- {name} ---")
    results[name] = train(
        method,
        training_tasks,
        optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
        steps=num_steps,
        tasks_per_step=2,
        log_every=max(num_steps // 20, 1),
    )

# %%
fig, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, result in results.items():
    steps = [record["step"] for record in result.history]
    losses = [record["loss"] for record in result.history]
    axes.plot(steps, losses, label=name)
axes.set(xlabel="outer step", ylabel="query loss in training (nats)")
axes.legend()
plt.show()

# %% [markdown]
# ## Judge it
#
# `evaluate` adapts to every task of a fixed bank, here of classes that training never
# saw. The ± is the half-width of the 95 % interval over tasks.

# %%
test_tasks = glyphs(way=5, shot=5, num_queries=15, split="meta_test")
reports = {
    name: evaluate(
        learners[name],
        result.meta_params,
        test_tasks,
        num_tasks=20 if FAST else 600,
    )
    for name, result in results.items()
}
for name, report in reports.items():
    print(f"--- {name} ---\n{report}\n")

# %% [markdown]
# Which one is better? Tasks differ more than methods do, so two intervals may overlap
# though one method wins almost everywhere. But both were judged on the *same* tasks,
# and the difference within a task is a much sharper measure. Only if the interval of
# that difference leaves out 0 is it more than the luck of the draw of test tasks. It
# still speaks of one training run of each; for a claim about the methods, train with
# several seeds and see `metajax.across_seeds`.
#
# When this notebook was written, ridge regression came out 0.4 percent points *behind*
# Prototypical Networks, with an interval of ± 0.3, while the two intervals above did
# overlap. Not every idea wins, and it is good to be able to tell.

# %%
comparison = compare(reports["ridge"], reports["prototypical"])
print(f"a = ridge, b = prototypical: {comparison}")

difference = 100 * (
    reports["ridge"].values["accuracy"] - reports["prototypical"].values["accuracy"]
)
fig, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
width = 100 / 75  # percent points that one of a task's 75 queries makes
edges = width * (np.arange(np.rint(np.ptp(difference) / width) + 2) - 0.5)
axes.hist(difference, bins=difference.min() + edges, color="tab:blue", alpha=0.5)
axes.axvline(0, color="0.5", linestyle=":", label="no difference")
mean, half_width = 100 * comparison.difference, 100 * comparison.half_width
axes.axvline(mean, color="black", label="mean, with 95 % interval")
axes.axvspan(mean - half_width, mean + half_width, color="black", alpha=0.2)
axes.set(xlabel="ridge minus prototypical, percent points", ylabel="test tasks")
fig.legend(loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# ## Is it honest?
#
# A learner whose answer to one query depends on the *other* queries solves an easier
# problem, called transductive, and must not be compared with one that does not. This is
# easy to get wrong without noticing: normalising over the batch of queries is enough.
# `leakage` measures it, by changing the other queries and watching the answers.

# %%
task = bank_task(test_tasks, 0)
leaky = ridge(conv4(features=32, pooling="stride", normalization="batch"), way=5)
leaky_params = jax.jit(leaky.init)(jax.random.key(0), task)
checks = {
    "layer normalisation": leakage(learner, results["ridge"].meta_params, task),
    "batch normalisation": leakage(leaky, leaky_params, task),
}
for name, check in checks.items():
    print(f"{name}: {check.protocol}, answers change by {check.max_deviation:.1e}")

# %% [markdown]
# ## Your own images
#
# Any array of images with integer labels becomes a table of classes. The images below
# stand for yours: 40 kinds of stripes in 24 x 24 pixels, 20 noisy examples each. For
# images in files, one folder per class, there is `metajax.tasks.from_folder`.

# %%
rng = np.random.default_rng(0)
labels = np.repeat(np.arange(40), 20)
angle = np.pi * (labels % 10) / 10
frequency = 0.6 + 0.3 * (labels // 10)
phase = rng.uniform(0, 2 * np.pi, len(labels))
rows, columns = np.mgrid[:24, :24]
along = (
    np.cos(angle)[:, None, None] * columns[None]
    + np.sin(angle)[:, None, None] * rows[None]
)
waves = np.sin(frequency[:, None, None] * along + phase[:, None, None])
noisy = waves + rng.normal(0, 0.8, waves.shape)
images = np.uint8(255 * np.clip(0.5 + 0.2 * noisy, 0, 1))

table = from_arrays(images, labels)
seen, held_out = split_classes(table, jax.random.key(0), (0.6, 0.4))
print(f"{seen.num_classes} classes to train on, {held_out.num_classes} held out")

fig, all_axes = plt.subplots(2, 6, figsize=(7, 2.6), layout="constrained")
for column, label in enumerate(range(0, 40, 7)):
    for axes, image in zip(all_axes[:, column], images[labels == label], strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
    all_axes[0, column].set_title(f"class {label}")
plt.show()

# %% [markdown]
# ## Your own network
#
# Any Flax Linen module will do, as long as it keeps no state: `from_linen` makes a
# model of it. Where its `__call__` takes `deterministic`, dropout is on in training and
# off when the learner is judged. For Flax NNX there is `from_nnx`, for plain functions
# `from_functions`.


# %%
class TextureNet(nn.Module):
    """Two convolutions, then the mean over the image: where things are is forgotten."""

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Maps images `[n, H, W, 1]` to embeddings `[n, 32]`."""
        x = nn.relu(nn.Conv(16, (7, 7), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dropout(0.1, deterministic=deterministic)(nn.Dense(32)(x))


own_learner = ridge(from_linen(TextureNet()), way=5)
num_steps = 10 if FAST else 500
own_result = train(
    own_learner,
    few_shot(seen, way=5, shot=1, num_queries=5),
    optax.adam(1e-3),
    steps=num_steps,
    tasks_per_step=4,
    log_every=max(num_steps // 10, 1),
)
print(
    evaluate(
        own_learner,
        own_result.meta_params,
        few_shot(held_out, way=5, shot=1, num_queries=15),
        num_tasks=20 if FAST else 600,
    )
)

# %% [markdown]
# Chance is 20 %. The classes of this test were in no training task.
#
# To add your learner to metajax itself, `CONTRIBUTING.md` has the template of its file
# and the list of what its tests must show.

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
# # Quickstart: train two meta-learners and look at them
#
# A meta-learner is trained on many small tasks, so that it learns a *new* task from a
# handful of examples. Each task comes in two parts: the **support** set, from which the
# learner learns, and the **query** set, on which it is judged afterwards.
#
# This notebook trains two methods from opposite ends of the field, each in about a
# minute on a laptop:
#
# 1. **MAML** on sine curves. It learns starting weights from which one gradient step
#    goes a long way.
# 2. **Prototypical Networks** on handwritten-like characters. They learn an embedding
#    in which examples of one class lie together, and never take a gradient step on a
#    new task.
#
# Nothing is downloaded: all data are drawn by the program that trains on them.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Image, display
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from metajax import evaluate, train
from metajax.evaluation import bank_task
from metajax.learners import maml, prototypical
from metajax.models import conv4, mlp
from metajax.objectives import squared_error
from metajax.plots import plot_tasks
from metajax.tasks import glyphs, sinusoid

# Compiled programs are kept, so that the notebook starts quickly when it runs again.
if jax.config.jax_compilation_cache_dir is None:
    folder = os.path.join(tempfile.gettempdir(), "metajax-compiled")
    jax.config.update("jax_compilation_cache_dir", folder)

# With METAJAX_FAST=1 every training is tiny, to test that the notebook runs. What the
# text says of the pictures is then not to be seen in them.
FAST = os.environ.get("METAJAX_FAST", "0") == "1"


# %% [markdown]
# ## 1. Sine curves: learning where to start
#
# A task is one curve, $y = A \sin(x - \varphi)$, with an amplitude $A$ between 0.1 and
# 5 and a phase $\varphi$ between 0 and $\pi$. The learner sees ten points of it. A task
# distribution is a plain function from a random key to a task, so that it can be
# compiled together with the training step.

# %%
curves = sinusoid(shot=10, num_queries=10)
task = curves(jax.random.key(0))
print("support:", task.support.x.shape, "query:", task.query.x.shape)

# %% [markdown]
# MAML trains the weights that a task *starts from*. In training it takes one gradient
# step on the support set, asks how good the result is on the query set, and improves
# the starting weights through that step. `eval_steps=10` lets it take ten steps when
# it is judged later on.

# %%
model = mlp(1)  # two hidden layers of 40 units, as in the paper
learner = maml(
    model, optax.sgd(0.01), inner_steps=1, eval_inner_steps=10, objective=squared_error
)
num_steps = 20 if FAST else 12_000
optimizer = optax.chain(
    optax.clip_by_global_norm(10.0),  # the first gradients are much larger
    optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
)
result = train(
    learner,
    curves,
    optimizer,
    steps=num_steps,
    tasks_per_step=25,
    steps_per_dispatch=10 if FAST else 500,  # many steps in one compiled call
    log_every=max(num_steps // 10, 10),
)

# %% [markdown]
# ### Before and after each inner step
#
# `learner.adapt_steps` returns the weights after 0, 1, ..., 10 inner steps. Below,
# each column is a task that the learner has never seen. The dashed line is the true
# curve, the black dots are all that the learner sees of it, and the coloured lines are
# its answers, from pale (before the first step) to dark (after the tenth).
#
# Before any step the answer is the same for every task, as nothing is known yet. The
# first step does most of the work. Where there are no dots, the answer still bends like
# a sine: that part comes from meta-training and not from this task.

# %%
grid = jnp.linspace(-5, 5, 200)[:, None]
shown_steps = (0, 1, 3, 10)
shades = plt.get_cmap("Blues")(np.linspace(0.35, 1, len(shown_steps)))

fig, all_axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
for index, axes in enumerate(all_axes):
    task = bank_task(curves, index)
    states = learner.adapt_steps(result.meta_params, task.support)
    answers = jax.vmap(lambda state: learner.predict(state, grid))(states)
    # The truth from its own points: A sin(x - phi) is linear in (sin x, cos x).
    basis = np.concatenate([np.sin(task.query.x), np.cos(task.query.x)], axis=1)
    weights = np.linalg.lstsq(basis, np.asarray(task.query.y))[0]
    truth = np.concatenate([np.sin(grid), np.cos(grid)], axis=1) @ weights
    axes.plot(grid, truth, "--", color="tab:orange", linewidth=2, label="true curve")
    for steps, shade in zip(shown_steps, shades, strict=True):
        label = "1 step" if steps == 1 else f"{steps} steps"
        axes.plot(grid, answers[steps], color=shade, label=label)
    axes.plot(task.support.x, task.support.y, "ko", markersize=5, label="support")
    axes.set(title=f"new task {index}", xlabel="x")
all_axes[0].set_ylabel("y")
fig.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper")
plt.show()

# %% [markdown]
# Three curves may be luck, so the next picture is the mean over a fixed bank of test
# tasks, with its 95 % interval as a band. For comparison, the same network starts from
# random weights, with steps a tenth as large: from there, full ones diverge.
#
# Two exact floors help to read it. Always answering 0 has an error of 4.25. The best
# single function, the same for all tasks, has 3.01: a learner can only come below that
# by learning something from its support set.

# %%
num_tasks = 20 if FAST else 600
scratch = maml(model, optax.sgd(0.001), inner_steps=10, objective=squared_error)
starts = {
    "meta-trained start": (learner, result.meta_params),
    "random start": (scratch, scratch.init(jax.random.key(1), task)),
}

fig, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
for name, (method, meta_params) in starts.items():
    report = evaluate(
        method, meta_params, curves, num_tasks=num_tasks, steps_curve=True
    )
    curve = report.curve["mse"]
    steps = np.arange(len(curve.mean))
    axes.plot(steps, curve.mean, marker="o", markersize=4, label=name)
    axes.fill_between(
        steps, curve.mean - curve.half_width, curve.mean + curve.half_width, alpha=0.25
    )
    print(f"{name}: {curve.mean[0]:.2f} before, {curve.mean[1]:.2f} after one step")
axes.axhline(4.2517, color="0.6", linestyle=":", label="always 0")
axes.axhline(3.0057, color="0.3", linestyle=":", label="best single function")
axes.set(xlabel="inner steps", ylabel="mean squared error", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# The error goes on falling for ten steps, though training only ever looked at the
# first. Longer training, 70,000 steps in the paper, brings it lower still.
#
# ## 2. Characters: learning an embedding
#
# `glyphs` draws an endless family of characters. A task has `way` new classes with
# `shot` support examples of each. Here are five tasks, each a row of five classes with
# one example. About half of the classes of a task come from the same alphabet and share
# strokes, so some are easily confused.

# %%
test_tasks = glyphs(way=5, shot=1, num_queries=15, split="meta_test")

fig, all_axes = plt.subplots(5, 5, figsize=(4.5, 4.5), layout="constrained")
for index, row in enumerate(all_axes):
    for axes, image in zip(row, bank_task(test_tasks, index).support.x, strict=True):
        axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Prototypical Networks embed the support set, take the mean of each class as its
# *prototype*, and give a query to the class with the nearest prototype. Training tasks
# may have more classes than test tasks; harder training is better training. The classes
# of the splits `meta_train` and `meta_test` are disjoint.
#
# `normalization="layer"` normalises each image by itself, so the answer to one query
# cannot depend on the other queries. The report below says so: *inductive*, which is
# measured and not taken on trust.

# %%
embedding = conv4(features=32, pooling="stride", normalization="layer")
proto = prototypical(embedding)
num_steps = 10 if FAST else 500
result = train(
    proto,
    glyphs(way=10, shot=1, num_queries=5, split="meta_train"),
    optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
    steps=num_steps,
    tasks_per_step=2,
    log_every=max(num_steps // 10, 10),
)

# %%
num_tasks = 20 if FAST else 600
untrained = jax.jit(proto.init)(jax.random.key(1), bank_task(test_tasks, 0))
stages = {"untrained": untrained, "trained": result.meta_params}
for name, meta_params in stages.items():
    report = evaluate(proto, meta_params, test_tasks, num_tasks=num_tasks)
    print(f"--- {name} ---\n{report}\n")

# %% [markdown]
# Chance is 20 %. An untrained network does better than that, as images of one class
# look alike; training does the rest.
#
# ### Tasks with their predictions
#
# Three of the test tasks: on the left the only support example of each class, on the
# right two queries of each. Above a query stands its true class, below it what the
# network takes it for, before and after training.


# %%
@jax.jit
def answer(meta_params, task):
    adapted = proto.adapt(meta_params, task.support)
    return jnp.argmax(proto.predict(adapted, task.query.x), axis=-1)


tasks = [bank_task(test_tasks, index) for index in range(3)]
answers = {
    name: [np.asarray(answer(meta_params, task)) for task in tasks]
    for name, meta_params in stages.items()
}
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "tasks.png")
    plot_tasks(path, tasks, answers)
    display(Image(path, width=800))

# %% [markdown]
# ### The embedding
#
# What has the network learned? Here are eight new classes with twenty examples each,
# as points in its embedding space, projected to the plane of largest variance
# (principal component analysis, by a singular value decomposition). The characters mark
# the prototypes of their classes.
#
# On the left, before training, the classes overlap. On the right most have come apart,
# though the network has never seen one of them. Two dimensions show only the share of
# the variance that the axes name, so classes that overlap here may still be apart in
# the full space. How far they are apart there is the number in the title: the fraction
# of examples that lie nearest to the prototype of their own class.

# %%
examples = bank_task(
    glyphs(way=8, shot=20, num_queries=1, split="meta_test"), 0
).support
labels = np.asarray(examples.y)

fig, all_axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
for axes, (name, params) in zip(all_axes, stages.items(), strict=True):
    features = np.asarray(embedding.apply(params, examples.x))
    features = features - features.mean(axis=0)
    prototypes = features.reshape(8, 20, -1).mean(axis=1)
    distances = np.sum(np.square(features[:, None] - prototypes[None]), axis=-1)
    nearest = np.mean(np.argmin(distances, axis=1) == labels)

    _, scales, directions = np.linalg.svd(features, full_matrices=False)
    shares = np.square(scales) / np.sum(np.square(scales))
    points = features @ directions[:2].T
    for label in range(8):
        color = plt.get_cmap("Dark2")(label)
        axes.scatter(*points[labels == label].T, color=color, s=18, alpha=0.7)
        mark = OffsetImage(1 - examples.x[20 * label, ..., 0], zoom=0.8, cmap="gray")
        axes.add_artist(
            AnnotationBbox(
                mark,
                prototypes[label] @ directions[:2].T,
                pad=0.1,
                bboxprops={"edgecolor": color, "linewidth": 2},
            )
        )
    axes.set(
        title=f"{name}: {nearest:.0%} nearest to their own prototype",
        xlabel=f"first direction, {shares[0]:.0%} of the variance",
        ylabel=f"second direction, {shares[1]:.0%}",
        xticks=[],
        yticks=[],
    )
plt.show()

# %% [markdown]
# ## Where to go from here
#
# * `metajax train --help` offers the same on the command line, with a folder for each
#   run that holds its settings, metrics, checkpoints and learning curve, and from which
#   it resumes.
# * The notebook `write_your_own_learner` builds a new method in a page, and trains it
#   on your own images with your own network.

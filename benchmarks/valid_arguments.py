"""Valid arguments of every public function and class, small ones, and their first use.

`benchmarks.wrong_arguments` replaces one of them after another by a wrong one. What is
not here makes it fail, so that nothing new is forgotten: an argument is looked up by
its name, in `OF` those of one function first.

A value is given by a function of no arguments, which is called once in each process.
"""

import functools
import importlib
import inspect
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import learners, models, optimizers, outer_gradients, tasks
from metajax.command_line.catalogue import is_for_numbers
from metajax.distributions import Gaussian
from metajax.training.gradient_bias import Candidate
from metajax.types import Examples, Learner, Model, OuterGradient, Task

__all__ = ["arguments_of", "called", "is_data", "makers_of", "public", "use"]

SNAPSHOT = pathlib.Path(__file__).parents[1] / "tests" / "public_names.json"

Make = Callable[[], Any]


def public() -> dict[str, Callable[..., Any]]:
    """All public functions and classes: "namespace.name" -> it."""
    found = {}
    for namespace, names in json.loads(SNAPSHOT.read_text()).items():
        module = importlib.import_module(namespace)
        for name in names:
            value = getattr(module, name)
            if callable(value):
                found[f"{namespace.removeprefix('metajax.')}.{name}"] = value
    return found


# What several need.

WAY, SHOT, NUM_QUERIES, SIZE = 3, 2, 2, 4
KEY = functools.cache(lambda: jax.random.key(0))


def blobs(key: jax.Array) -> Task:
    """Three classes of points."""
    centers = 2 * jax.random.normal(key, (WAY, 1, SIZE))
    noise = jax.random.normal(key, (WAY, SHOT + NUM_QUERIES, SIZE))
    x = centers + 0.3 * noise
    y = jnp.repeat(jnp.arange(WAY), SHOT + NUM_QUERIES).reshape(WAY, -1)

    def examples(part: slice) -> Examples:
        return Examples(x[:, part].reshape(-1, SIZE), y[:, part].reshape(-1))

    return Task(examples(slice(SHOT)), examples(slice(SHOT, None)))


def pairs(key: jax.Array) -> Task:
    """Two tables: a sample of one, and one more of each."""
    first, second = (blobs(key) for key in jax.random.split(key))
    queries = jax.tree.map(lambda *leaves: jnp.stack(leaves), first.query, second.query)
    return Task(first.support, Examples(queries, jnp.asarray([1, 0])))


def points(key: jax.Array) -> Task:
    """Points of a function with one target."""
    x = jax.random.normal(key, (7, SIZE))
    y = jnp.sin(jnp.sum(x, axis=1, keepdims=True))
    return Task(Examples(x[:4], y[:4]), Examples(x[4:], y[4:]))


@functools.cache
def model() -> Model:
    """A network that serves as an embedding and as a classifier."""
    return models.mlp(WAY, hidden_sizes=(5,))


@functools.cache
def learner() -> Learner:
    """The one that others are wrapped around."""
    return learners.prototypical(model(), way=WAY)


@functools.cache
def stepping() -> Learner:
    """One with two inner steps."""
    return learners.maml(model(), optax.sgd(0.1), inner_steps=2)


@functools.cache
def stream() -> Learner:
    """One that reads one example after another."""
    return learners.lstm_learner(models.identity(), way=WAY, hidden_size=4)


@functools.cache
def task() -> Task:
    """One of the above."""
    return jax.jit(blobs)(KEY())


def started(make: Callable[[], Learner]) -> Make:
    """Its meta-parameters."""
    return functools.cache(lambda: jax.jit(make().init)(KEY(), task()))


params = started(learner)


@functools.cache
def params_of_model() -> Any:
    """Parameters of the network."""
    return jax.jit(model().init)(KEY(), task().support.x)


@functools.cache
def report(seed: int = 0) -> metajax.evaluation.Report:
    """Of one learner; `seed` is that of its meta-parameters."""
    meta_params = learner().init(jax.random.key(seed), task())
    return metajax.evaluate(learner(), meta_params, blobs, num_tasks=4)


@functools.cache
def class_table() -> Any:
    """Five classes of four images."""
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1), np.uint8)
    return tasks.from_arrays(images, np.arange(20) // 4)


def host_tasks() -> Any:
    """Tasks of images that stay on the host."""
    from metajax.tasks.images.class_table import ClassTable

    table = class_table()
    table = ClassTable(np.asarray(table.images), np.asarray(table.counts))
    return tasks.few_shot(table, way=3, shot=1, num_queries=1)


@functools.cache
def columns() -> dict[str, Any]:
    """A table of two columns and a target."""
    numbers = np.random.default_rng(0).normal(size=(2, 24)).round(3)
    kinds = ["a", "b"] * 12
    return {"u": numbers[0].tolist(), "v": numbers[1].tolist(), "kind": kinds}


table = functools.cache(lambda: tasks.from_table(columns(), target="kind"))
real_table = functools.cache(
    lambda: tasks.from_table(
        {name: columns()[name] for name in "uv"}, target="v", regression=True
    )
)
SMILES = ["C" * i + end for i in range(1, 7) for end in ("O", "N")]
molecules = functools.cache(
    lambda: tasks.from_molecules(SMILES, np.arange(12)[:, None] % 2, size=64)
)
process = functools.cache(
    lambda: tasks.gaussian_process(length_scale=1.0, shot=3, num_queries=2)
)


@functools.cache
def written(name: str, text: str) -> str:
    """A file."""
    path = pathlib.Path(name)
    path.write_text(text)
    return str(path)


@functools.cache
def run_dir() -> str:
    """The folder of a run."""
    path = "run"
    train(learner(), run_dir=path)
    return path


@functools.cache
def image_folder() -> str:
    """A folder of classes of images."""
    from PIL import Image

    for name in ("a", "b"):
        folder = pathlib.Path("images") / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(2):
            Image.fromarray(np.full((6, 6), 60 * i, np.uint8)).save(folder / f"{i}.png")
    return "images"


@functools.cache
def history() -> Any:
    """Of a run with validations."""
    return train(learner(), validation=blobs, num_validation_tasks=3).history


def train(learner: Learner, tasks: Any = blobs, **more: Any) -> Any:
    """One step."""
    sizes = {"steps": 1, "tasks_per_step": 2, "mesh": None, "progress": False}
    return metajax.train(learner, tasks, optax.sgd(1e-3), **(sizes | more))


def make_learner(gradient: Any) -> Learner:
    """For estimators of the outer gradient."""
    return learners.maml(model(), optax.sgd(0.1), inner_steps=2, gradient=gradient)


DATA = pathlib.Path(os.environ.get("METAJAX_DATA_DIR", "shared/data"))
LOGITS = functools.cache(lambda: jnp.asarray([[0.5, 1.0, 0.0], [2.0, 0.0, 1.0]]))
LABELS = functools.cache(lambda: jnp.asarray([1, 2]))
NORMAL = functools.cache(lambda: Gaussian(jnp.zeros((3, 1)), jnp.ones((3, 1))))
TARGETS = functools.cache(lambda: jnp.asarray([[0.5], [0.0], [-1.0]]))


# The tables. A name means the same wherever it stands, or stands in `OF`.

SMALL = {
    "cg_iterations": 2,
    "code_size": 4,
    "context": 8,
    "decoder_layers": 1,
    "depth": 1,
    "edge_features": 4,
    "encoder_layers": 1,
    "eval_inner_steps": 1,
    "features": 4,
    "fine_tuning_steps": 1,
    "embedding_layers": 1,
    "heads": 2,
    "hidden_size": 4,
    "hidden_sizes": (4,),
    "inner_steps": 1,
    "iterations": 2,
    "key_size": 4,
    "keys": (4,),
    "layers": 1,
    "key_layers": 1,
    "num_classes": WAY,
    "num_latents": 4,
    "num_outputs": WAY,
    "num_samples": 2,
    "num_tasks": 2,
    "rank": 1,
    "reads": 1,
    "sinkhorn_iterations": 3,
    "slots": 4,
    "token_size": 4,
    "units": 4,
    "values": (4,),
    "vertices": 2,
    "way": WAY,
    "width": 4,
    "writes": 2,
    # Of tasks.
    "num_queries": 2,
    "rows": 4,
    "shot": 2,
    # Of training and evaluation.
    "batch_size": 2,
    "level": 0.05,
    "mesh": None,
    "num_validation_tasks": 2,
    "prior": 0.1,
    "progress": False,
    "steps": 1,
    "tasks_per_block": 1,
    "tasks_per_step": 2,
    "tolerance": 1e-4,
}
"""Numbers. Of these a function takes those that it has."""

VALID: dict[str, Make] = {
    "learner": learner,
    "meta_params": params,
    "model": model,
    "tasks": lambda: blobs,
    "task": task,
    "key": KEY,
    "examples": lambda: task().support,
    "support": lambda: task().support,
    "query": lambda: task().query,
    "x": lambda: task().support.x,
    "y": lambda: task().support.y,
    "inner_optimizer": lambda: optax.sgd(0.1),
    "optimizer": lambda: optax.sgd(0.1),
    "max_norm": lambda: 1.0,
    "learning_rate": lambda: 0.1,
    "hyper_rate": lambda: 0.01,
    "objective": lambda: metajax.objectives.cross_entropy,
    "logits": LOGITS,
    "labels": LABELS,
    "params": params_of_model,
    "path": lambda: "picture.png",
    "predicate": lambda: metajax.filters.only("Dense_0"),
    "reports": lambda: [report(0), report(1)],
    "table": class_table,
    "ranks": lambda: np.array([[1, 1, 1, 2], [2, 2, 3, 1], [3, 3, 2, 3.0]]),
    "scores": lambda: [0.5, 0.0, 1.0],
    "adapt": lambda: learner().adapt,
    "predict": lambda: learner().predict,
    "init": lambda: learner().init,
    "loss": lambda: learner().loss,
    "tree": lambda: {"head": jnp.ones(2), "body": jnp.ones(3)},
}
"""What has no default, or needs another value than its default."""


def _numbers(**numbers: Any) -> dict[str, Make]:
    return {name: functools.partial(dict.get, numbers, name) for name in numbers}


OF: dict[str, dict[str, Make]] = {
    "metajax.Model": {
        "init": lambda: model().init,
        "apply": lambda: model().apply,
    },
    "metajax.NonFiniteError": _numbers(message="diverged", step=1, checkpoint=None),
    "metajax.Task": {},
    "metajax.compare": {"a": report, "b": lambda: report(1)},
    "metajax.load_meta_params": {"run_dir": run_dir, "like": params},
    "metajax.use_cores": _numbers(count=1),
    "metajax.whole_run": {"make": lambda: lambda hyper: (learner(), optax.sgd(0.1))},
    "metajax.train": _numbers(tasks_per_block="auto", validate_every=1),
    "descriptions.asymmetric_distance": {
        "source": lambda: jnp.asarray([0.2, 1.0, 0.5]),
        "target": lambda: jnp.asarray([0.3, 0.9, 0.1]),
    },
    "descriptions.symmetric_distance": {
        "first": lambda: jnp.asarray([0.2, 1.0, 0.5]),
        "second": lambda: jnp.asarray([0.3, 0.9, 0.1]),
    },
    "descriptions.fit_warm_start": {
        "features": lambda: np.arange(6.0).reshape(3, 2),
        "scores": lambda: np.eye(3),
    },
    "descriptions.recommend": {
        "warm_start": functools.cache(
            lambda: metajax.descriptions.fit_warm_start(
                np.arange(6.0).reshape(3, 2), np.eye(3)
            )
        ),
        "features": lambda: np.asarray([1.0, 2.0]),
        "num_neighbors": lambda: 2,
    },
    "descriptions.regret_curve": {"order": lambda: [1, 0, 2]},
    "descriptions.task2vec": {"num_samples": lambda: 1, "key": KEY},
    "distributions.Gaussian": {
        "mean": lambda: jnp.zeros((3, 1)),
        "scale": lambda: jnp.ones((3, 1)),
    },
    "distributions.Mixture": {
        "components": lambda: Gaussian(jnp.zeros((3, 2, 1)), jnp.ones((3, 2, 1)))
    },
    "distributions.joint_log_likelihood": {"outputs": NORMAL, "y": TARGETS},
    "distributions.kl_divergence": {"p": NORMAL, "q": NORMAL},
    "distributions.log_likelihood": {"outputs": NORMAL, "y": TARGETS},
    "distributions.moments": {"outputs": NORMAL},
    "distributions.negative_log_likelihood": {"outputs": NORMAL, "y": TARGETS},
    "evaluation.Report": {
        "values": lambda: {"accuracy": np.ones(3)},
        "protocol": lambda: "inductive",
        "seed": lambda: 0,
        "fingerprint": lambda: np.ones((3, 2)),
    },
    "evaluation.bank_task": _numbers(index=0),
    "evaluation.instance_accuracy": {
        "learner": stream,
        "meta_params": started(stream),
    },
    "evaluation.prequential": {"learner": stream, "meta_params": started(stream)},
    "evaluation.rank_learners": {
        "reports": lambda: {
            name: {"here": report(i), "there": report(i)}
            for i, name in enumerate(("one", "other"))
        }
    },
    "filters.all_but": _numbers(parts="head"),
    "filters.combine": {
        "first": lambda: {"a": jnp.ones(2), "b": None},
        "second": lambda: {"a": None, "b": jnp.ones(2)},
    },
    "filters.everything": _numbers(path="params/head/kernel"),
    "filters.keep_types": {
        "new": lambda: {"a": jnp.ones(2)},
        "old": lambda: {"a": jnp.ones(2, jnp.bfloat16)},
    },
    "filters.only": _numbers(parts="head"),
    "learners.center_embeddings": {
        "meta_params": started(lambda: learners.simple_shot(model(), way=WAY))
    },
    "learners.harden": {
        "adapted": functools.cache(
            lambda: _adapted(learners.soft_tree(way=WAY, depth=1, inner_steps=1))
        )
    },
    "learners.kernel_svm": _numbers(width=1.0),
    "learners.maml_plus_plus": {
        "model": lambda: models.mlp(WAY, hidden_sizes=(5,), normalization="batch")
    },
    "learners.optimizer_learner": {
        "inner_optimizer": functools.cache(
            lambda: optimizers.learned(
                optax.sgd, learning_rate=optimizers.HyperParameter(0.1)
            )
        )
    },
    "learners.reptile": _numbers(inner_steps=2, batch_size=None),
    "masks.expand": {
        "mask": lambda: jnp.asarray([True, False]),
        "leaf": lambda: jnp.ones((2, 3)),
    },
    "masks.hide_padding": {
        "x": lambda: jnp.ones((2, 3)),
        "mask": lambda: jnp.asarray([True, False]),
    },
    "masks.masked_mean": {
        "values": lambda: jnp.ones(2),
        "mask": lambda: jnp.asarray([True, False]),
    },
    "models.calibrate": {
        "model": lambda: models.mlp(WAY, hidden_sizes=(5,), normalization="calibrated"),
        "params": functools.cache(
            lambda: models.mlp(WAY, hidden_sizes=(5,), normalization="calibrated").init(
                KEY(), task().support.x
            )
        ),
    },
    "models.conv_general_dilated": {
        "lhs": lambda: jnp.ones((1, 2, 5, 5)),
        "rhs": lambda: jnp.ones((3, 2, 3, 3)),
        "window_strides": lambda: (1, 1),
        "padding": lambda: "SAME",
        "others": lambda: {"feature_group_count": 1},
    },
    "models.from_functions": {
        "init": lambda: lambda key, x: jnp.ones(()),
        "apply": lambda: lambda params, x: params * x,
    },
    "models.from_linen": {"module": lambda: _linen()},
    "models.from_nnx": {"build": lambda: _nnx},
    "models.resnet12": _numbers(widths=(2, 2, 2, 2)),
    "models.lstm": _numbers(num_outputs=2),
    "models.task_encoder": _numbers(num_classes=WAY),
    "models.with_precision": _numbers(precision="bfloat16"),
    "objectives.example_losses": {"outputs": LOGITS, "y": LABELS},
    "objectives.query_score": {
        "adapted": functools.cache(
            lambda: jax.jit(learner().adapt)(params(), task().support)
        )
    },
    "objectives.split_key": _numbers(num=2),
    "objectives.squared_error": {"outputs": TARGETS, "targets": TARGETS},
    "optimizers.HyperParameter": _numbers(value=0.1, inner_steps=None),
    "optimizers.LearnedOptimizer": {
        "init": lambda: lambda key, params: jnp.float32(0.1),
        "build": lambda: optax.sgd,
    },
    "optimizers.hypergradient": {"direction": lambda: optax.sgd(1.0)},
    "optimizers.learned": {
        "make": lambda: optax.sgd,
        "hyper": lambda: {"learning_rate": optimizers.HyperParameter(0.1)},
    },
    "outer_gradients.candidates": {"make": lambda: make_learner},
    "outer_gradients.compare_gradients": {
        "candidates": functools.cache(
            lambda: {"exact": Candidate(make_learner("remat"))}
        ),
        "meta_params": started(stepping),
        "repeats": lambda: 2,
    },
    "outer_gradients.pes": {"learner": stepping},
    "outer_gradients.truncated": {"learner": stepping},
    "plots.TaskMap": {
        "title": lambda: "tasks",
        "places": lambda: np.arange(8.0).reshape(4, 2),
        "labels": lambda: ["a", "b", "a", "b"],
    },
    "plots.plot_gradients": {
        "comparison": functools.cache(
            lambda: outer_gradients.compare_gradients(
                {name: Candidate(make_learner("remat")) for name in ("exact", "other")},
                started(stepping)(),
                blobs,
                num_tasks=2,
                repeats=2,
            )
        )
    },
    "plots.plot_learning_curve": {"history": history},
    "plots.plot_learning_curves": {
        "histories": lambda: {"prototypical": history()},
        "levels": lambda: {"chance": 1 / WAY},
    },
    "plots.plot_task_maps": {
        "maps": lambda: [
            metajax.plots.TaskMap(
                "tasks", np.arange(8.0).reshape(4, 2), ["a", "b", "a", "b"]
            )
        ]
    },
    "plots.plot_tasks": {
        "tasks": functools.cache(
            lambda: [tasks.few_shot(class_table(), way=3, shot=1, num_queries=1)(KEY())]
        ),
        "answers": lambda: {"prototypical": [[0, 1, 2]]},
    },
    "plots.plot_tree": {"tree": functools.cache(lambda: learners.harden(_soft_tree()))},
    "plots.task_places": {
        "distances": lambda: np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    },
    "tasks.bucketed": _numbers(buckets=[(4, 4)]),
    "tasks.check_task": _numbers(name="task"),
    "tasks.embed_table": {
        "model": functools.cache(lambda: _small_conv4()),
        "params": functools.cache(
            lambda: _small_conv4().init(KEY(), jnp.ones((1, 6, 6, 1)))
        ),
    },
    "tasks.exact_posterior": {
        "tasks": process,
        "support": lambda: process()(KEY()).support,
        "query": lambda: process()(KEY()).query,
    },
    "tasks.fit_buckets": _numbers(num_shapes=2),
    "tasks.from_arrays": {
        "images": lambda: np.zeros((4, 6, 6, 1), np.uint8),
        "labels": lambda: [0, 0, 1, 1],
    },
    "tasks.from_folder": {"path": image_folder},
    "tasks.from_molecules": {
        "smiles": lambda: SMILES,
        "assays": lambda: np.arange(12)[:, None] % 2,
        "size": lambda: 64,
    },
    "tasks.from_table": {
        "source": columns,
        "target": lambda: "kind",
    },
    "tasks.from_tfds": _numbers(
        name="omniglot",
        split="small1[:5%]",
        size=(8, 8),
        channels=1,
        data_dir=str(DATA / "tfds"),
        download=False,
    ),
    "tasks.glyphs": {},
    "tasks.image_completion": {"table": class_table},
    "tasks.join_classes": {"tables": lambda: [class_table(), class_table()]},
    "tasks.meta_dataset_tasks": _numbers(
        way=(2, 3), max_support=6, max_per_class=2, num_queries=2
    ),
    "tasks.mixture": {"tasks": lambda: [blobs, blobs]},
    "tasks.molecule_tasks": {"table": molecules},
    "tasks.omniglot": _numbers(
        split="meta_test", data_dir=str(DATA / "omniglot"), download=False
    ),
    "tasks.on_host": {"tasks": functools.cache(host_tasks)},
    "tasks.read_molecules": {
        "path": lambda: written("molecules.csv", "smiles,active\nCO,0\nCN,1\n")
    },
    "tasks.read_rows": {
        "source": lambda: {name: columns()[name] for name in "uv"},
        "table": table,
    },
    "tasks.row_tasks": {"tables": real_table},
    "tasks.split_classes": {"fractions": lambda: (0.6, 0.4)},
    "tasks.standard_task": {
        "support": lambda: points(KEY()).support,
        "query": lambda: points(KEY()).query,
    },
    "tasks.synthetic_table": _numbers(
        way=2, columns=4, informative=2, redundant=1, clusters=1
    ),
    "tasks.table_pairs": {"tables": lambda: [table(), table()]},
    "tasks.table_tasks": {"tables": table, "way": lambda: 2},
    "tasks.tabular_prior": _numbers(way=(2, 3), rows=(6, 8), columns=(2, 4)),
    "tasks.whole_classes": {"batch_size": lambda: 4},
    "tasks.without_embedding": {},
}


def _small_conv4() -> Model:
    """A network whose embedding of one image does not depend on others."""
    return models.conv4(features=2, pooling="stride", normalization="none")


def _soft_tree() -> Any:
    """What `harden` takes."""
    return OF["learners.harden"]["adapted"]()


def _adapted(learner: Learner) -> Any:
    meta_params = jax.jit(learner.init)(KEY(), task())
    return jax.jit(learner.adapt)(meta_params, task().support)


def _linen() -> Any:
    from flax import linen as nn

    return nn.Dense(WAY)


def _nnx(rngs: Any) -> Any:
    from flax import nnx

    return nnx.Linear(SIZE, WAY, rngs=rngs)


def arguments_of(name: str) -> dict[str, Any]:
    """Valid arguments of one public function or class."""
    return {argument: make() for argument, make in makers_of(name).items()}


def makers_of(name: str) -> dict[str, Make]:
    """What makes valid arguments of one public function or class.

    Raises:
      LookupError: if one has no default and stands in no table.
    """
    function = public()[name]
    own = OF.get(name, {})
    found: dict[str, Make] = {}
    missing = []
    only_numbers = name.startswith("learners.") and is_for_numbers(function)
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument in own:
            found[argument] = own[argument]
        elif argument == "num_outputs" and only_numbers:
            found[argument] = lambda: 1
        elif argument == "num_outputs" and _takes_way(function):
            found[argument] = lambda: None
        elif argument in SMALL:
            found[argument] = functools.partial(SMALL.get, argument)
        elif parameter.default is not parameter.empty:
            found[argument] = functools.partial(lambda value: value, parameter.default)
        elif argument in VALID:
            found[argument] = VALID[argument]
        else:
            missing.append(argument)
    if missing:
        raise LookupError(
            f"`{name}` has no valid {', '.join(missing)}: write them into "
            "benchmarks/valid_arguments.py, so that wrong ones can be tried."
        )
    return found


def _takes_way(function: Callable[..., Any]) -> bool:
    return "way" in inspect.signature(function).parameters


def called(name: str, arguments: dict[str, Any]) -> Any:
    """Calls it, with `*parts` and `**hyper` spread out."""
    function = public()[name]
    if name == "metajax.use_cores":  # JAX was used, so that it would change nothing
        with mock.patch.object(jax.config, "update"):
            return function(**arguments)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument not in arguments:
            continue
        value = arguments[argument]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.append(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            first = next(iter(_valid_hyper(name)))
            named |= value if isinstance(value, dict) else {first: value}
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            named[argument] = value
    return function(*positional, **named)


def _valid_hyper(name: str) -> dict[str, Any]:
    """The valid `**hyper`."""
    (found,) = [
        own() for argument, own in OF[name].items() if argument in ("hyper", "others")
    ]
    return found


def is_data(name: str, argument: str) -> bool:
    """Says whether an argument holds data, of which NaN may come out again."""
    parameter = inspect.signature(public()[name]).parameters[argument]
    text = str(parameter.annotation)
    return (
        parameter.default is parameter.empty
        and any(word in text for word in ("Array", "Any", "ndarray", "Examples"))
        and not name.startswith("optimizers.")
    ) or argument in ("assays", "scores", "levels", "histories", "values")


# First use: what shows only when a thing is used.


def use(name: str, value: Any) -> Any:
    """Uses what was built, once, on something tiny; gives all numbers that came out."""
    if name == "metajax.load_meta_params":
        return value
    if isinstance(value, Learner):
        return _use_learner(name, value)
    if name == "metajax.Model":
        return _use_learner(name, learners.prototypical(value, way=WAY))
    if isinstance(value, Model):
        return _use_model(name, value)
    if isinstance(value, models.Conv):
        return _use_model(name, models.from_linen(value))
    if isinstance(value, optimizers.HyperParameter):
        value = optimizers.learned(optax.sgd, learning_rate=value)
    if isinstance(value, optimizers.LearnedOptimizer):
        return _use_learner(name, learners.maml(model(), value, inner_steps=1))
    if isinstance(value, optax.GradientTransformation):
        return _use_optimizer(value)
    if isinstance(value, OuterGradient):
        return train(stepping(), outer_gradient=value).meta_params
    if name in ("distributions.Gaussian", "distributions.Mixture"):
        return value, metajax.distributions.log_likelihood(value, TARGETS())
    if isinstance(value, Examples):
        value = Task(value, value)
    if isinstance(value, Task) and name in ("metajax.Examples", "metajax.Task"):
        drawn = value
        train(learner(), lambda key: drawn)
        return learner().loss(params(), drawn)
    if isinstance(value, metajax.plots.TaskMap):
        return metajax.plots.plot_task_maps("map.png", [value])
    if isinstance(value, metajax.evaluation.Report):
        return value.values, str(value), value.to_json()
    return _use_other(name, value)


def _use_other(name: str, value: Any) -> Any:
    if name == "metajax.whole_run":
        return value(KEY(), None)
    if name == "objectives.query_loss":
        return value(params(), task())
    if name in ("filters.only", "filters.all_but"):
        value("params/head/kernel")
        return None
    if name == "models.task_encoder":
        support = task().support
        return value.apply(value.init(KEY(), support), support)
    if name == "outer_gradients.candidates":
        last = list(value.values())[-1]
        return train(last.learner, outer_gradient=last.outer_gradient).meta_params
    if name == "tasks.on_host":
        flat = learners.prototypical(models.mlp(2, hidden_sizes=(2,)), way=3)
        return train(flat, value).meta_params
    if name == "tasks.split_classes":
        value = value[0]
    if name == "tasks.from_tfds":  # with classes of one image
        return value.images
    if isinstance(value, type(class_table())):
        few = tasks.few_shot(value, way=1, shot=1, num_queries=1)
        return jax.jit(few.__call__)(KEY())
    if name == "tasks.from_table":
        return value.x, value.y
    if name.startswith("tasks.") and callable(value):
        return jax.jit(lambda key: value(key))(KEY())
    return value


def _use_learner(name: str, learner: Learner) -> Any:
    sample: Any = blobs
    if name == "learners.dataset2vec":
        sample = pairs
    elif name.startswith("learners.") and is_for_numbers(public()[name]):
        sample = points
    trained = train(learner, sample, tasks_per_step=1)
    drawn = sample(KEY())

    @jax.jit
    def answer(meta_params: Any, task: Task) -> Any:
        adapted = learner.adapt(meta_params, task.support)
        return learner.predict(adapted, task.query.x, mask=task.query.mask)

    loss = [record["loss"] for record in trained.history]
    return trained.meta_params, loss, answer(trained.meta_params, drawn)


def _use_model(name: str, model: Model) -> Any:
    if name in ("models.conv4", "models.resnet12", "models.Conv"):
        x = jnp.linspace(0, 1, 2 * 16 * 16).reshape(2, 16, 16, 1)
    elif name == "models.lstm":
        x = jnp.linspace(0, 1, 24).reshape(2, 3, 4)
    else:
        x = task().support.x
    parameters = jax.jit(model.init)(KEY(), x)
    return parameters, jax.jit(model.apply)(parameters, x)


def _use_optimizer(optimizer: optax.GradientTransformation) -> Any:
    weights = {"a": jnp.ones(2)}
    state = optimizer.init(weights)
    for _ in range(2):
        updates, state = optimizer.update({"a": jnp.full(2, 0.1)}, state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights

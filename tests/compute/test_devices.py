"""Tests of many devices. With one device the file runs itself again with four."""

import os
import re
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from quadratic import quadratic, sample

from metajax.compute.devices import TASK_AXIS, mean_over_devices, place, task_mesh
from metajax.evaluation.bank import evaluate
from metajax.learners.gradient.maml import maml
from metajax.models.adapters import from_linen
from metajax.models.convolution import Conv
from metajax.models.networks import mlp
from metajax.tasks.images.class_table import ClassTable, class_table
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.grain_source import on_host
from metajax.training.outer_loop import (
    init_state,
    reverse_mode,
    run_steps_fn,
    sample_tasks,
)
from metajax.training.trainer import train

FOLDER = os.path.dirname(__file__)
OPTIMIZER = optax.adam(0.1)
VALIDATION = {"validation": sample, "num_validation_tasks": 10}
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 8, 1), np.uint8)


class SmallCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(Conv(4, strides=2)(x)).mean((1, 2)))


def start(*arguments: str, devices: int) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.path.dirname(FOLDER),
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(learner, tasks, mesh, **options):
    arguments = {"steps": 6, "tasks_per_step": 8, "progress": False, "mesh": mesh}
    return train(learner, tasks, OPTIMIZER, **arguments | options)


def compare(result, expected, rtol):
    """Equal results: one sum in another order, and what becomes of it."""
    chex.assert_trees_all_close(
        jax.device_get(result.meta_params), expected.meta_params, rtol=rtol, atol=1e-5
    )
    for got, wanted in zip(result.history, expected.history, strict=True):
        for name in wanted.keys() - {"timing", "half_width", "kind"}:
            np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=1e-5)


if jax.device_count() == 1:

    def test_this_file_on_four_devices():
        process = start("-m", "pytest", "-q", "-p", "no:xdist", __file__, devices=4)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output

    def test_two_processes_train_as_one(tmp_path):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        script = os.path.join(FOLDER, "one_of_two_processes.py")
        pair = [
            start(script, str(port), str(process), str(tmp_path / "run"), devices=2)
            for process in range(2)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], outputs
        lines = [re.search("^theta .*$", output, re.M).group() for output in outputs]
        assert lines[0] == lines[1]
        expected = train(
            quadratic(noise=0.1),
            sample,
            OPTIMIZER,
            steps=10,
            tasks_per_step=8,
            validation=sample,
            validate_every=5,
            num_validation_tasks=10,
            checkpoint_every=3,
            progress=False,
        )
        *theta, records = map(float, lines[0].split()[1:])
        np.testing.assert_allclose(theta, expected.best_params["theta"], rtol=1e-4)
        assert records == 9  # the two runs left one history

    def test_one_device_is_no_mesh():
        assert task_mesh("auto", 8) is None
        assert task_mesh(None, 8) is None

    @pytest.mark.parametrize(
        ("mesh", "message"),
        [
            (2, "`mesh` must be a jax.sharding.Mesh, 'auto' or None, got 2"),
            ("all", "`mesh` must be a jax.sharding.Mesh, 'auto' or None, got 'all'"),
            (
                Mesh(np.array(jax.devices()), ("data",)),
                r"`mesh` must have an axis 'tasks', got axes \('data',\); make one by",
            ),
        ],
    )
    def test_bad_mesh(mesh, message):
        with pytest.raises(ValueError, match=message):
            train(quadratic(), sample, OPTIMIZER, steps=1, tasks_per_step=2, mesh=mesh)

else:
    MESHES = {
        "all": Mesh(np.array(jax.devices()), (TASK_AXIS,)),
        "two": Mesh(np.array(jax.devices()[2:]), (TASK_AXIS,)),
        "explicit": jax.make_mesh((4,), (TASK_AXIS,)),
        "cut parameters": Mesh(
            np.array(jax.devices()).reshape(2, 2), (TASK_AXIS, "model")
        ),
    }

    @pytest.fixture(scope="module")
    def one_device():
        return run(quadratic(noise=0.1), sample, None, **VALIDATION)

    @pytest.mark.parametrize("mesh", ["auto", *MESHES])
    @pytest.mark.parametrize("steps_per_dispatch", [1, 4])
    def test_training_is_that_of_one_device(one_device, mesh, steps_per_dispatch):
        result = run(
            quadratic(noise=0.1),
            sample,
            MESHES.get(mesh, mesh),
            steps_per_dispatch=steps_per_dispatch,
            **VALIDATION,
        )
        compare(result, one_device, 1e-4)

    @pytest.mark.parametrize("mesh", ["all", "cut parameters"])
    def test_convolutional_maml_is_that_of_one_device(mesh):
        learner = maml(from_linen(SmallCNN()), optax.sgd(0.1), inner_steps=1)
        tasks = few_shot(class_table(IMAGES), way=2, shot=1, num_queries=2)
        options = {"steps": 2, "tasks_per_step": 4}
        expected = run(learner, tasks, None, **options)
        result = run(learner, tasks, MESHES[mesh], **options)
        kernel = result.meta_params["params"]["Conv_0"]["kernel"]
        cut = {"all": (), "cut parameters": (None, None, None, ("model",))}[mesh]
        assert kernel.sharding.spec == PartitionSpec(*cut)
        compare(result, expected, 1e-2)

    @pytest.mark.parametrize("steps_per_dispatch", [1, 4])
    def test_tasks_from_the_host(steps_per_dispatch):
        learner = maml(mlp(2, hidden_sizes=(4,)), optax.sgd(0.1), inner_steps=1)
        options = {"steps": 5, "steps_per_dispatch": steps_per_dispatch}
        sizes = {"way": 2, "shot": 1, "num_queries": 2}
        table = ClassTable(IMAGES, np.full(len(IMAGES), IMAGES.shape[1]))
        host = on_host(few_shot(table, **sizes))
        result = run(learner, host, MESHES["all"], **options)
        tasks = few_shot(class_table(IMAGES), **sizes)
        compare(result, run(learner, tasks, None, **options), 1e-4)

    @pytest.mark.parametrize("mesh", ["all", "cut parameters"])
    def test_what_was_collected_stays_on_its_device(mesh):
        def collect(meta_params, task, *, key=None):
            noise = jax.random.normal(key, task.query.y.shape)
            moved = task.query.y + meta_params["theta"][None] + noise
            return task._replace(query=task.query._replace(y=moved))

        learner = quadratic(noise=0.1)._replace(collect=collect)
        expected = run(learner, sample, None, updates_per_step=3)
        result = run(learner, sample, MESHES[mesh], updates_per_step=3)
        compare(result, expected, 1e-4)

    @pytest.mark.parametrize("steps_per_dispatch", [1, 4])
    def test_one_all_reduce(key, steps_per_dispatch):
        mesh = task_mesh("auto", 8)
        learner, outer_gradient = quadratic(noise=0.1), reverse_mode()
        state = place(
            init_state(key, learner, sample(key), OPTIMIZER, outer_gradient), mesh
        )
        program = run_steps_fn(
            learner,
            OPTIMIZER,
            outer_gradient,
            sample_tasks,
            tasks_per_step=8,
            steps_per_dispatch=steps_per_dispatch,
            mesh=mesh,
        )
        source = jax.tree_util.Partial(sample)
        lowered = program.lower(state, source, place(key, mesh), 0, 1)
        # Of several, XLA joins those that are small enough; there is one to begin with.
        assert lowered.as_text().count("stablehlo.all_reduce") == 1
        compiled = lowered.compile()
        # A result may be a tuple, so only the name and its bracket are looked for.
        names = r" (all-[a-z-]+|reduce-scatter[a-z-]*|collective-[a-z-]+)\("
        assert re.findall(names, compiled.as_text()) == ["all-reduce"]
        # What comes out is where it must go in again.
        new_state, _ = compiled(state, source, place(key, mesh), 0, 1)
        assert new_state.meta_params["theta"].sharding.is_fully_replicated

    def test_means_and_what_is_no_number(key):
        mesh = MESHES["all"]

        def fn(x):
            return {"mean": x.mean(), "sum": x.sum(0), "key": key, "count": 3}

        def with_arrays(x):
            return jax.tree.map(jax.numpy.asarray, fn(x))

        x = np.arange(24, dtype=np.float32).reshape(8, 3)
        specs = (PartitionSpec(TASK_AXIS),)
        got = jax.jit(mean_over_devices(with_arrays, mesh, specs))(x)
        np.testing.assert_allclose(got["mean"], x.mean())
        np.testing.assert_allclose(got["sum"], x.sum(0) / 4)
        assert got["count"] == 3
        assert got["key"] == key

    def test_evaluation_is_that_of_one_device(key):
        learner = quadratic()
        params = learner.init(key, sample(key))
        wanted = evaluate(learner, params, sample, num_tasks=30, mesh=None)
        for mesh in ("auto", MESHES["two"], MESHES["cut parameters"]):
            got = evaluate(learner, params, sample, num_tasks=30, mesh=mesh)
            np.testing.assert_allclose(
                got.values["mse"], wanted.values["mse"], rtol=1e-5
            )
            assert got.num_tasks == 30

    def test_auto_takes_what_divides_the_tasks():
        assert task_mesh("auto", 6).shape == {TASK_AXIS: 2}
        assert task_mesh("auto", 7) is None
        assert task_mesh("auto").shape == {TASK_AXIS: 4}

    def test_mesh_must_divide_tasks():
        message = "must be a multiple of 4, .* got 6; give 8 tasks, or a mesh of 2"
        with pytest.raises(ValueError, match=message):
            run(quadratic(), sample, MESHES["all"], tasks_per_step=6)

    def test_blocks_are_those_of_a_device():
        message = "must divide the 2 tasks of a step on each device, got 4; .* one of"
        with pytest.raises(ValueError, match=message):
            run(quadratic(), sample, MESHES["all"], tasks_per_block=4)

    def test_other_number_of_devices_is_a_warning(tmp_path):
        run(quadratic(), sample, MESHES["all"], run_dir=tmp_path / "run")
        message = "device.used: 4 in the folder, 2 now"
        with pytest.warns(UserWarning, match=message):
            run(quadratic(), sample, MESHES["two"], run_dir=tmp_path / "run")

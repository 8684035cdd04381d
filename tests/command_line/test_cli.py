import inspect
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import metajax
from metajax.command_line import catalogue, cli, configuration
from metajax.command_line.cli import main
from metajax.command_line.configuration import (
    Config,
    build_learner,
    build_tasks,
    config_from_json,
    resolve,
)
from metajax.command_line.forms import FORMS, InnerOptimizer, OuterOptimizer
from metajax.evaluation.bank import evaluate
from metajax.inner import unroll
from metajax.learners.gradient.maml import maml
from metajax.models import normalization
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.training.checkpoints import load_meta_params
from metajax.training.run_folder import read_metrics

TINY = [
    *("--steps", "2", "--tasks-per-step", "2", "--num-validation-tasks", "2"),
    "--no-progress",
]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """A folder of 20 classes with 6 images of 4 x 4 each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in range(20):
        (folder / f"class{label:02d}").mkdir()
        for number in range(6):
            pixels = rng.integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02d}/{number}.png")
    return folder


def folder_tasks(images: pathlib.Path) -> list[str]:
    """Arguments for 3-way tasks of these images, of which 4 classes are for testing."""
    return [
        *("folder", "--tasks.path", str(images), "--tasks.way", "3"),
        *("--tasks.num-queries", "2"),
    ]


def contents(folder: str) -> dict[str, bytes]:
    paths = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
    return {str(path): path.read_bytes() for path in paths}


def test_evaluate_rebuilds_what_train_left(capsys):
    command = "train maml mlp sinusoid --run-dir run --model.hidden-sizes 8 6"
    command += " --learner.inner-optimizer.learning-rate 0.01"
    command += " --learner.eval-inner-steps 2"
    assert main([*command.split(), *TINY]) == 0
    assert "best validation mse" in capsys.readouterr().out
    before = contents("run")

    command = "evaluate run --num-tasks 20 --seed 3 --curve --output report.json"
    assert main(command.split()) == 0
    out = capsys.readouterr().out

    model = mlp(1, hidden_sizes=(8, 6))
    learner = maml(
        model,
        optax.sgd(0.01),
        inner_steps=1,
        eval_inner_steps=2,
        objective=squared_error,
    )
    tasks = sinusoid()
    like = learner.init(jax.random.key(0), tasks(jax.random.key(0)))
    expected = evaluate(
        learner,
        load_meta_params("run", like),
        tasks,
        num_tasks=20,
        seed=3,
        steps_curve=True,
    )
    assert f"mse {expected.mean['mse']:.4g}" in out
    assert f"{expected.curve['mse'].mean[2]:.4f} ±" in out
    report = json.loads(pathlib.Path("report.json").read_text())
    np.testing.assert_allclose(
        report["metrics"]["mse"]["mean"], expected.mean["mse"], rtol=1e-6
    )
    assert contents("run") == before  # nothing was trained


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ("--num-validation-tasks 1", "no interval"),
        ("--num-validation-tasks 2 --learner.eval-inner-steps 40", "nan"),
    ],
)
def test_a_validation_without_an_interval_or_a_mean_ends_well(changes, shown, capsys):
    command = "train maml mlp sinusoid --run-dir run --steps 1 --tasks-per-step 2"
    assert main([*command.split(), *changes.split(), "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert "python -m metajax evaluate run" in out


def test_train_goes_on_with_more_steps_and_refuses_other_settings(capsys):
    command = "train maml mlp sinusoid --run-dir run --model.hidden-sizes 4".split()
    assert main([*command, *TINY]) == 0
    assert main([*command, *TINY, "--steps", "3"]) == 0
    assert read_metrics("run")[-1]["step"] == 3
    assert main([*command, *TINY, "--steps", "3", "--learner.inner-steps", "2"]) == 2
    assert (
        "config.learner.maml.inner_steps: 1 in the folder, 2 now"
        in capsys.readouterr().err
    )


def test_evaluate_with_other_sizes(images, capsys):
    command = ["train", "prototypical", "mlp", *folder_tasks(images), *TINY]
    assert main([*command, "--run-dir", "run", "--validation.way", "2"]) == 0
    config = json.loads(pathlib.Path("run/config.json").read_text())["config"]
    assert config["validation"]["folder"]["way"] == 2
    assert config["model"]["mlp"]["num_outputs"] == 64
    capsys.readouterr()
    command = "evaluate run --way 4 --shot 3 --num-queries 1 --num-tasks 4 --which last"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    for expected in ("way=4", "shot=3", "accuracy", "4 tasks, inductive", "nll"):
        assert expected in out
    assert "calibration error" in out
    # Other tasks, which may come with sizes of their own.
    tasks = ["folder", "--tasks.path", str(images), "--tasks.way", "2"]
    command = [*"evaluate run --num-tasks 4 --num-queries 3".split(), *tasks]
    assert main(command) == 0
    assert "way=2, shot=1, num_queries=3" in capsys.readouterr().out


def test_baseline_learns_all_classes_and_graph_one_way(images, capsys):
    """The first trains on all 13 training classes, the other on 3 and no more."""
    command = ["train", "baseline", "mlp", *folder_tasks(images), *TINY]
    command += ["--run-dir", "run", "--learner.inner-steps", "1"]
    command += ["--tasks.rotations", "4"]
    assert main(command) == 0
    config = json.loads(pathlib.Path("run/config.json").read_text())["config"]
    assert config["learner"]["baseline"]["num_classes"] == 4 * 13
    assert main(["train", "baseline", "mlp", "sinusoid", *TINY]) == 2
    assert "targets of 'sinusoid' tasks are real numbers" in capsys.readouterr().err
    assert main(["train", "baseline", "mlp", "glyphs", *TINY]) == 2
    assert "'glyphs' tasks have no fixed classes" in capsys.readouterr().err
    command = ["train", "graph", "mlp", *folder_tasks(images), *TINY]
    assert main([*command, "--validation.way", "4"]) == 2
    error = capsys.readouterr().err
    assert "`way` must be at most 3, the classes that `graph` was built for" in error


@pytest.mark.parametrize(
    ("model", "other", "shape"),
    [
        ("mlp --model.hidden-sizes 4", "glyphs --tasks.way 3", "[28, 28, 1]"),
        ("conv4 --model.features 2 --model.pooling stride", "sinusoid", "[1]"),
    ],
)
def test_evaluate_on_inputs_that_do_not_fit(model, other, shape, images, capsys):
    command = ["train", "maml", *model.split(), *folder_tasks(images)]
    assert main([*command, *TINY, "--run-dir", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", *other.split()]) == 2
    message = (
        "The trained model reads inputs of shape [4, 4, 1], and those of the test "
        f"tasks have shape {shape}; give tasks of equal shape, or train on these."
    )
    assert message in capsys.readouterr().err


def test_evaluate_calibrates_and_takes_more_steps(images, capsys):
    command = ["train", "maml", "mlp", *folder_tasks(images), *TINY, "--run-dir", "run"]
    assert main([*command, "--model.normalization", "calibrated"]) == 0
    capsys.readouterr()
    assert main("evaluate run --inner-steps 4 --curve --num-tasks 4".split()) == 0
    out = capsys.readouterr().out
    assert "inductive" in out
    assert "│ 4 " in out
    assert main("evaluate run --way 4".split()) == 2
    assert "`way` must be at most 3, the number of outputs" in capsys.readouterr().err


def test_only_evaluate_reaches_the_test_split(images, monkeypatch):
    splits = []

    def spy(values, split):
        splits.append(split)
        return build_tasks(values, split)

    monkeypatch.setattr(configuration, "build_tasks", spy)
    monkeypatch.setattr(cli, "build_tasks", spy)
    command = ["train", "prototypical", "mlp", *folder_tasks(images), *TINY]
    assert main([*command, "--run-dir", "run"]) == 0
    assert set(splits) == {"meta_train", "meta_valid"}
    assert main("evaluate run --num-tasks 4".split()) == 0
    assert splits[-1] == "meta_test"


def test_folder_splits_share_no_class(images):
    values = FORMS["tasks"]["folder"](path=str(images), way=3, num_queries=2)
    tables = [
        np.asarray(build_tasks(values, split).table.images)
        for split in configuration.SPLITS
    ]
    assert [len(table) for table in tables] == [13, 3, 4]
    rows = {row.tobytes() for table in tables for row in table}
    assert len(rows) == 20


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("train maml conv5 glyphs", "conv4, resnet12, mlp, identity"),
        ("train mamml conv4 glyphs", "cavia, imaml, leo, maml, maml_plus_plus"),
        ("train maml conv4 glyph", "glyphs, omniglot, folder, tfds, sinusoid"),
        ("train maml conv4 glyphs --model.normalization no", "'layer', 'group'"),
        ("train maml conv4 glyphs --learner.gradient no", "'reverse', 'remat'"),
        ("train prototypical conv4 glyphs --learner.distance no", "'cosine'"),
        ("train maml conv4 omniglot --tasks.rotations 3", "'1', '2', '4'"),
        ("train maml conv4 glyphs --optimizer.name no", "'adamw'"),
        ("train maml conv4 glyphs --stepps 3", "did you mean `--steps`?"),
        ("evaluate run --split no", "'meta_test'"),
        ("tain", "train, evaluate, list"),
    ],
)
def test_unknown_names_are_answered_by_the_allowed_ones(command, allowed, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    words = (captured.out + captured.err).replace("│", " ").split()
    assert allowed in " ".join(words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train maml mlp sinusoid --steps 0", "`steps` must be an integer of at least"),
        ("train maml mlp sinusoid --tasks.shot 0", "`shot` must be an integer of at"),
        (
            "train maml mlp sinusoid --learner.inner-steps -1",
            "`inner_steps` must be an integer",
        ),
        ("train maml mlp sinusoid --learner.adapts some", "`only:PART` or `all_but"),
        ("train maml mlp sinusoid --optimizer.clip-norm 0", "`optimizer.clip_norm`"),
        ("train maml conv4 sinusoid", "`conv4` needs images, but the inputs of"),
        (
            "train maml mlp sinusoid --learner.objective cross_entropy",
            "`learner.objective` is cross_entropy, but the targets of 'sinusoid'",
        ),
        (
            "train maml mlp sinusoid --model.num-outputs 3",
            "these arguments do not go together: ",
        ),
        (
            "train reptile mlp synthetic_table --learner.keeps-state",
            "of at most 1, so that what is kept is a mean of states; got adam with",
        ),
        (
            "train maml mlp sinusoid --learner.inner-optimizer.learning-rate -1",
            "`inner_optimizer.learning_rate` must be above 0 and finite, got -1.0",
        ),
        (f"train maml mlp sinusoid --seed {2**40}", "`seed` must be an integer from 0"),
        ("train prototypical mlp sinusoid", "`prototypical` classifies, but the"),
        ("train maml identity sinusoid", "`identity` has none; use `mlp` or `conv4`"),
        ("train latent_np identity synthetic_table", "are class labels; use `proto"),
        ("train latent_np mlp sinusoid", "`latent_np` reads its inputs itself and"),
        ("train kernel_svm mlp synthetic_table", "takes no model, got `mlp`; write"),
        ("train maml mlp sinusoid --validation.way 3", "have no `way` to change"),
        ("train maml mlp folder --tasks.path nowhere", "'nowhere' is not a folder"),
        ("evaluate nowhere", "There is no nowhere/config.json; give the folder"),
    ],
)
def test_wrong_values_end_with_the_message_alone(command, message, capsys):
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("metajax: ")
    assert message in err
    assert not os.listdir()  # nothing was written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("{}", "config.json lacks 'config'"),
        ("[1]", "config.json lacks the settings of a run"),
        ('{"config": {}, "train": {"seed": 0}}', "cannot be read (KeyError: 'learner'"),
    ],
)
def test_evaluate_says_what_is_wrong_with_a_config(text, message, capsys):
    pathlib.Path("config.json").write_text(text)
    assert main(["evaluate", "."]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(FloatingPointError("diverged"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_codes_of_what_stops_a_run(error, code, monkeypatch):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "train_run", stop)
    assert main("train maml mlp sinusoid".split()) == code


def test_commands_run_where_jax_is_in_use_already(capsys):
    assert jax.device_count() == 1
    assert main(["list"]) == 0
    assert jax.device_count() == 1
    assert "maml" in capsys.readouterr().out


def test_list_names_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    exported = {
        name
        for name, value in vars(metajax.learners).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation is metajax.Learner
    }
    assert {"maml", "prototypical"} <= exported
    # Its tasks are pairs of tables.
    assert exported - {"dataset2vec"} == set(catalogue.LEARNERS)
    names = [*catalogue.LEARNERS, *catalogue.MODELS, *catalogue.TASKS]
    names += [*unroll.GRADIENT_MODES, *normalization.NORMALIZATIONS]
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(names) <= set(rows)
    assert "an initialisation that adapts in a few steps" in rows["maml"]
    assert (
        "Prototypical Networks for Few-shot Learning, NeurIPS" in rows["prototypical"]
    )
    assert "Mixed-Mode Differentiation, ICML 2025" in rows["mixed"]
    assert "`[n, ...]`" in rows["identity"]  # no markup of the terminal


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as stop:
        main("train maml mlp sinusoid --help".split())
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "outer steps in total, at least 1. (default: 1000)",
        "inner steps in training, at least 0",
        "`(low, high)` of phi, in radians.",
        "sizes of the hidden layers",
    ):
        assert text in words


def test_every_constructor_argument_is_reachable():
    parts = {
        "learner": catalogue.LEARNERS,
        "model": catalogue.MODELS,
        "tasks": catalogue.TASKS,
    }
    # `split` is chosen by the command; networks, tables and augmentations are code.
    elsewhere = {"model", "split", "table", "augment", "embedding"}
    for part, constructors in parts.items():
        for name, constructor in constructors.items():
            expected = set(inspect.signature(constructor).parameters) - elsewhere
            assert expected <= set(FORMS[part][name].__dataclass_fields__)
            if part == "tasks" and name not in (
                "sinusoid",
                "glyphs",
                "regression_families",
                "gaussian_process",
                "synthetic_table",
            ):
                sizes = {"way", "shot", "num_queries", "dtype"}
                assert sizes <= set(FORMS[part][name].__dataclass_fields__)
    training = set(inspect.signature(metajax.training.trainer.train).parameters)
    built = {"learner", "tasks", "optimizer", "validation", "config", "run_dir"}
    code = {"outer_gradient", "mesh", "judge"}
    assert training - built - code == set(cli._Training.__dataclass_fields__)


@pytest.mark.parametrize("tasks", ["glyphs", "omniglot", "folder", "tfds", "sinusoid"])
def test_config_survives_json(tasks):
    required = {"folder": {"path": "x"}, "tfds": {"name": "mnist", "split": "train"}}
    sizes = {} if tasks == "sinusoid" else {"way": (3, 5)}
    values = FORMS["tasks"][tasks](**required.get(tasks, {}), **sizes)
    config = Config(
        learner=FORMS["learner"]["maml"](
            inner_optimizer=InnerOptimizer(name="adam"), adapts="only:head"
        ),
        model=FORMS["model"]["mlp"](hidden_sizes=(3, 4)),
        tasks=values,
        validation=values,
        optimizer=OuterOptimizer(schedule="cosine"),
    )
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", FORMS["learner"])
def test_every_learner_is_built_from_json(name):
    tasks = FORMS["tasks"]["synthetic_table"](shot=2, columns=10)
    given = {"num_classes": 2} if name == "baseline" else {}
    model = FORMS["model"]["mlp"](hidden_sizes=(4,), normalization="layer")
    if catalogue.is_for_numbers(catalogue.LEARNERS[name]):
        tasks = FORMS["tasks"]["gaussian_process"](shot=3)
    if not catalogue.takes(catalogue.LEARNERS[name], "model"):
        model = FORMS["model"]["identity"]()
    config = resolve(
        Config(
            learner=FORMS["learner"][name](**given),
            model=model,
            tasks=tasks,
            validation=tasks,
            optimizer=OuterOptimizer(),
        )
    )
    config = config_from_json(json.loads(json.dumps(config.to_json())))
    _, learner = build_learner(config)
    task = jax.eval_shape(build_tasks(tasks, "meta_train"), jax.random.key(1))
    meta_params = jax.eval_shape(learner.init, jax.random.key(0), task)
    loss, _ = jax.eval_shape(learner.loss, meta_params, task)
    assert loss.shape == ()


def test_an_optimizer_is_learned_where_that_is_possible():
    for name in ("sgd", "momentum", "adam", "lstm"):
        built = InnerOptimizer(name=name, learned="leaf").build()
        assert isinstance(built, metajax.optimizers.LearnedOptimizer)
    optimizer = InnerOptimizer(learned="optimizer").build()
    for refuses in (
        metajax.learners.reptile,
        metajax.learners.cavia,
        metajax.learners.proto_maml,
    ):
        with pytest.raises(ValueError, match="does not learn its inner optimizer"):
            refuses(metajax.models.mlp(2), optimizer, inner_steps=2)


def test_only_the_head_adapts():
    tasks = FORMS["tasks"]["sinusoid"]()
    config = resolve(
        Config(
            learner=FORMS["learner"]["maml"](adapts="only:head"),
            model=FORMS["model"]["mlp"](hidden_sizes=(4,)),
            tasks=tasks,
            validation=tasks,
            optimizer=OuterOptimizer(),
        )
    )
    _, learner = build_learner(config)
    task = build_tasks(tasks, "meta_train")(jax.random.key(1))
    before = learner.init(jax.random.key(0), task)["params"]
    after = learner.adapt({"params": before}, task.support)["params"]
    assert np.all(before["Dense_0"]["kernel"] == after["Dense_0"]["kernel"])
    assert np.any(before["head"]["kernel"] != after["head"]["kernel"])


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (OuterOptimizer(name="sgd", learning_rate=0.5), -1.5),
        (OuterOptimizer(name="sgd", learning_rate=0.5, clip_norm=1.0), -0.5),
        (OuterOptimizer(name="adam", learning_rate=0.5), -0.5),
        (InnerOptimizer(name="sgd", learning_rate=0.5), -1.5),
        (InnerOptimizer(name="adam", learning_rate=0.5), -0.5),
    ],
)
def test_optimizers(optimizer, expected):
    built = optimizer.build(10) if isinstance(optimizer, OuterOptimizer) else None
    built = built or optimizer.build()
    params = jnp.float32(0)
    update, _ = built.update(jnp.float32(3), built.init(params), params)
    np.testing.assert_allclose(update, expected, rtol=1e-3)


def test_cosine_schedule_ends_at_zero():
    built = OuterOptimizer(name="sgd", schedule="cosine").build(2)
    state = built.init(jnp.float32(0))
    updates = []
    for _ in range(3):
        update, state = built.update(jnp.float32(1), state, jnp.float32(0))
        updates.append(float(update))
    np.testing.assert_allclose(updates, [-1e-3, -5e-4, 0], atol=1e-9)


def test_no_command_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "Without a command" in said
    assert "(required)" not in said


def test_flags_are_told_beside_their_opposites(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--progress, --no-progress" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", [["--run-dir", "x"], ["--run_dir=x"], ["x"]])
def test_the_folder_of_evaluate_by_name_or_place(capsys, spelling):
    assert main(["evaluate", *spelling, "--num-tasks", "2"]) == 2
    assert "There is no x/config.json" in capsys.readouterr().err


def test_messages_of_the_library_name_the_flags(capsys):
    tasks = ["glyphs", "--tasks.way", "0"]
    assert main(["train", "prototypical", "conv4", *tasks]) == 2
    assert "`way` is --learner.way or --tasks.way" in capsys.readouterr().err

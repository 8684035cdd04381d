"""The command line: `train`, `evaluate`, `list`, and the main job without a command.

    python -m metajax
    python -m metajax train maml conv4 glyphs --steps 2000 --learner.inner-steps 1
    python -m metajax evaluate runs/maml-conv4-glyphs-seed0 --shot 5

What `train` was given stands in the run folder's `config.json`, from which `evaluate`
builds learner and tasks again. Only `evaluate` builds tasks of the test split.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metajax.command_line.cards import choices_in, paper, papers, title
from metajax.command_line.catalogue import LEARNERS, MODELS, TASKS
from metajax.command_line.configuration import (
    Config,
    build_learner,
    build_tasks,
    changed,
    check_way,
    config_from_json,
    resolve,
    train_run,
)
from metajax.command_line.forms import OuterOptimizer, choice, form_of
from metajax.command_line.suggestions import options_of, what_is_unknown
from metajax.compute.cores import use_cores
from metajax.evaluation.bank import evaluate as evaluate_learner
from metajax.evaluation.reports import Report, format_value
from metajax.inner import unroll
from metajax.models import normalization
from metajax.models.normalization import calibrate
from metajax.training.checkpoints import load_meta_params
from metajax.training.trainer import train as train_learner
from metajax.types import Learner, PyTree, TaskDistribution

__all__ = ["evaluate", "list_all", "main", "train"]

_DESCRIPTION = """Meta-learning in JAX.

Without a command, it runs the main job: MAML and Prototypical Networks learn to tell
drawn characters apart from one example each, and are compared with two baselines, in
about three minutes. Nothing is downloaded; pictures go to runs/main.

Options come after the name of what they belong to, for example
`metajax train maml conv4 glyphs --learner.inner-steps 5 --tasks.way 20`; ask for --help
after these names to see all of them."""

_Training = form_of(
    "Training",
    train_learner,
    without=(
        *("learner", "tasks", "optimizer", "outer_gradient", "validation", "config"),
        "judge",
        *("run_dir", "mesh"),
    ),
    steps=1000,
    tasks_per_step=8,
)


_SAME = Annotated[
    None,
    tyro.conf.subcommand(
        "same", description="The tasks of training.", prefix_name=False
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of tasks that may differ from those of training."""

    way: int | None = None
    """Classes in a task; by default those of the tasks."""
    shot: int | None = None
    """Support examples of each class; by default those of the tasks."""
    num_queries: int | None = None
    """Query examples of each class; by default those of the tasks."""


def train(
    learner: Annotated[
        Any, tyro.conf.arg(constructor_factory=lambda: choice("learner"))
    ],
    model: Annotated[Any, tyro.conf.arg(constructor_factory=lambda: choice("model"))],
    tasks: Annotated[Any, tyro.conf.arg(constructor_factory=lambda: choice("tasks"))],
    *,
    training: Annotated[
        Any, tyro.conf.arg(name="", constructor_factory=lambda: _Training)
    ],
    optimizer: OuterOptimizer,
    validation: Sizes,
    run_dir: str | None = None,
) -> None:
    """Meta-trains a learner, and leaves a run folder for `evaluate`.

    Trains on the classes of meta_train and validates on those of meta_valid. The same
    command again goes on with a run that was stopped, bit for bit.

    Args:
      learner: arguments of the learner.
      model: arguments of the model.
      tasks: arguments of the task distribution.
      training: arguments of `metajax.train`.
      optimizer: of the outer loop.
      validation: sizes of the validation tasks.
      run_dir: folder for configuration, metrics, checkpoints and learning curve; by
        default runs/LEARNER-MODEL-TASKS-seedSEED.
    """
    names = [type(part).__name__ for part in (learner, model, tasks)]
    run_dir = run_dir or f"runs/{'-'.join(names)}-seed{training.seed}"
    config = resolve(
        Config(
            learner=learner,
            model=model,
            tasks=tasks,
            validation=changed(tasks, "tasks", **vars(validation)),
            optimizer=optimizer,
        )
    )
    _, result = train_run(config, run_dir, **vars(training))
    best = [
        record
        for record in result.history
        if record["kind"] == "validation" and record["step"] == result.best_step
    ]
    for record in best:
        for name, half_width in record["half_width"].items():
            value, width = (
                math.nan if number is None else number
                for number in (record[name], half_width)
            )
            print(f"best validation {name}: {format_value(name, value, width)}")
    print(f"The run is in {run_dir}. To test it: python -m metajax evaluate {run_dir}")


def evaluate(
    run_dir: tyro.conf.Positional[str],
    tasks: Annotated[
        Any,
        tyro.conf.arg(constructor_factory=lambda: choice("tasks") | _SAME),
    ] = None,
    *,
    sizes: Annotated[Sizes, tyro.conf.arg(name="")],
    inner_steps: int | None = None,
    split: Literal["meta_test", "meta_valid", "meta_train"] = "meta_test",
    num_tasks: int = 600,
    seed: int = 0,
    tasks_per_block: int | Literal["auto"] = "auto",
    which: Literal["best", "last"] = "best",
    curve: bool = False,
    output: str | None = None,
) -> None:
    """Tests what `train` left in a run folder, on a fixed bank of test tasks.

    Says the mean over tasks with its 95 % interval, negative log likelihood and
    calibration, and whether the predictions are inductive or transductive. Trains
    nothing and changes nothing in the run folder.

    Args:
      run_dir: a folder that `metajax train` wrote.
      tasks: other tasks than those of training; by default the same.
      sizes: sizes of the test tasks.
      inner_steps: of `adapt`; by default those of the run's learner.
      split: whose classes the tasks are made of.
      num_tasks: tasks in the bank.
      seed: of the bank: equal seeds give equal tasks.
      tasks_per_block: tasks at once; fewer need less memory. `auto` takes what is
        fastest.
      which: meta-parameters of the best validation or of the last step.
      curve: whether to show the metrics after every inner step, too.
      output: a file to write the report to, as JSON.
    """
    config, training_seed = _read_config(run_dir)
    tasks = changed(config.tasks if tasks is None else tasks, "tasks", **vars(sizes))
    check_way(config, tasks)
    if inner_steps is not None:
        learner_values = changed(
            config.learner, "learners", eval_inner_steps=inner_steps
        )
        config = dataclasses.replace(config, learner=learner_values)
    model, learner = build_learner(config)
    training_tasks = build_tasks(config.tasks, "meta_train")
    test_tasks = build_tasks(tasks, split)
    like = _meta_params_like(learner, training_tasks, test_tasks)
    params = load_meta_params(run_dir, like, which=which)
    if model.normalization == "calibrated":
        params = calibrate(model, params, training_tasks, jax.random.key(training_seed))
    report = evaluate_learner(
        learner,
        params,
        test_tasks,
        num_tasks=num_tasks,
        seed=seed,
        tasks_per_block=tasks_per_block,
        steps_curve=curve,
    )
    print(f"{run_dir} ({which} meta-parameters) on {split}: {tasks}")
    print(report)
    if curve:
        Console().print(_curve_table(report))
    if output is not None:
        text = json.dumps(report.to_json(), indent=1)
        pathlib.Path(output).write_text(f"{text}\n", encoding="utf-8")


def list_all() -> None:
    """Lists learners, models, tasks, gradient modes and normalisations."""
    console = Console()
    for name, constructors in (
        ("learner", LEARNERS),
        ("model", MODELS),
        ("tasks", TASKS),
    ):
        table = _wide_table(name, "what it is", "paper")
        for key, constructor in constructors.items():
            table.add_row(key, escape(title(constructor)), papers(constructor))
        console.print(table)
    table = _wide_table("gradient", "how the outer gradient passes the inner loop")
    described = choices_in(unroll.__doc__)
    for mode in unroll.GRADIENT_MODES:
        first_clause = re.split(r": |\. (?=[A-Z])", described[mode])[0]
        table.add_row(mode, escape(first_clause), paper(described[mode]))
    console.print(table)
    table = _wide_table("normalization", "whose statistics")
    described = choices_in(normalization.__doc__)
    for kind in normalization.NORMALIZATIONS:
        table.add_row(kind, escape(described[kind]))
    console.print(table)
    console.print(
        "Arguments: python -m metajax train LEARNER MODEL TASKS --help", style="dim"
    )


_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "list": list_all,
}
# Arguments of commands that are several options, or none.
_NOT_OWN = (
    *("learner", "model", "tasks"),
    *("training", "optimizer", "validation", "sizes"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: what follows the name of the program; `sys.argv` by default.

    Returns:
      The exit code: 0; 1 if training diverged; 2 if something that was given is wrong;
      130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with contextlib.suppress(RuntimeError):  # called from Python after JAX was used
        use_cores()
    try:
        if argv:
            _parsed(_folder_by_place(argv))()
        else:
            _run_main_job()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"metajax: {error}{_as_flags(str(error), argv)}", file=sys.stderr)
        return 2
    except AssertionError as error:  # of shapes and types, in a function's first lines
        print(f"metajax: these arguments do not go together: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"metajax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "metajax: stopped. A training goes on from its last checkpoint with the "
            "same command.",
            file=sys.stderr,
        )
        return 130
    return 0


def _parsed(argv: list[str]) -> Callable[[], None]:
    """Reads a command line, and gives what it asks for.

    Where that fails for a name or an option that is unknown, we say what may have been
    meant: tyro suggests options of learners and tasks that were not named.

    Raises:
      SystemExit: after help, or after saying what is wrong.
    """
    app = tyro.extras.SubcommandApp()
    for name, command in _COMMANDS.items():
        app.command(name=name)(_later(command))
    parse = functools.partial(
        app.cli,
        prog="metajax",
        description=_DESCRIPTION,
        args=argv,
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    try:
        return parse(console_outputs=False)
    except SystemExit as stop:
        unknown = what_is_unknown(argv, _options()) if stop.code else None
    if unknown is not None:
        print(f"metajax: {unknown}", file=sys.stderr)
        raise SystemExit(2)
    with _help_of_no_command(argv):
        return parse()


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Keeps arguments and help of a command, which then runs once all is read."""

    @functools.wraps(command)
    def kept(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return kept


def _options() -> dict[str, list[str]]:
    """The options of each command, besides those of learner, model and tasks."""
    grouped: dict[str, dict[str, type]] = {
        "train": {"": _Training, "optimizer": OuterOptimizer, "validation": Sizes},
        "evaluate": {"": Sizes},
    }
    options = {}
    for name, command in _COMMANDS.items():
        own = form_of(name, command, without=_NOT_OWN)
        forms = [(own, ""), *((f, g) for g, f in grouped.get(name, {}).items())]
        options[name] = [flag for f, g in forms for flag in options_of(f, g)]
    return options


@contextlib.contextmanager
def _help_of_no_command(argv: Sequence[str]) -> Iterator[None]:
    """Takes "(required)" out of the help, as there is a main job without a command."""
    if not {"-h", "--help"}.issuperset(argv):
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        lines = said.getvalue().splitlines(keepends=True)
        print(*(line for line in lines if "(required)" not in line), sep="", end="")


def _folder_by_place(argv: Sequence[str]) -> list[str]:
    """Moves `--run-dir FOLDER`, as `train` has it, to its place in `evaluate`."""
    command, *others = argv
    for place, word in enumerate(others):
        name, _, value = word.partition("=")
        if command == "evaluate" and name.replace("_", "-") == "--run-dir":
            after = others[place + 1 :]
            folder = [value] if value else after[:1]
            return [command, *folder, *others[:place], *(after if value else after[1:])]
    return list(argv)


def _as_flags(message: str, argv: Sequence[str]) -> str:
    """Says which flags set the arguments that a message of the library names."""
    flags: dict[str, list[str]] = {}
    for group, constructors in (
        ("learner", LEARNERS),
        ("model", MODELS),
        ("tasks", TASKS),
    ):
        for word in argv:
            if word in constructors:
                for name in inspect.signature(constructors[word]).parameters:
                    flag = f"--{group}.{name.replace('_', '-')}"
                    flags.setdefault(name, []).append(flag)
    for field in dataclasses.fields(_Training):
        flags.setdefault(field.name, []).append(f"--{field.name.replace('_', '-')}")
    named = dict.fromkeys(re.findall(r"`([a-z_]+)(?:`|=)", message))
    known = [name for name in named if name in flags]
    told = [f"`{name}` is {' or '.join(flags[name])}" for name in known]
    return f"\nOn the command line {', '.join(told)}." if told else ""


def _run_main_job() -> None:
    # Half of its time would be compilation. With less optimisation that takes half as
    # long, and the programs are no slower. XLA reads this before it first compiles.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {flags}"
    from metajax.command_line.main_job import main_job

    main_job()


def _read_config(run_dir: str) -> tuple[Config, int]:
    path = pathlib.Path(run_dir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}; give the folder that `metajax train` wrote."
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore the file.") from error
    try:
        return config_from_json(settings["config"]), settings["train"]["seed"]
    except (KeyError, TypeError) as error:
        missing = error if isinstance(error, KeyError) else "the settings of a run"
        raise ValueError(
            f"{path} lacks {missing}; give the folder that `metajax train` wrote."
        ) from error


def _meta_params_like(
    learner: Learner, training: TaskDistribution, test: TaskDistribution
) -> PyTree:
    """Shapes of the trained meta-parameters, once the test tasks are seen to fit."""
    key = jax.random.key(0)
    trained_on, tested_on = (jax.eval_shape(tasks, key) for tasks in (training, test))
    like = jax.eval_shape(learner.init, key, trained_on)
    try:
        fits = jax.eval_shape(learner.init, key, tested_on) == like
    except (AssertionError, TypeError, ValueError):  # of a model that cannot read them
        fits = False
    if not fits:
        trained, tested = (
            list(task.query.x.shape[1:]) for task in (trained_on, tested_on)
        )
        raise ValueError(
            f"The trained model reads inputs of shape {trained}, and those of the test "
            f"tasks have shape {tested}; give tasks of equal shape, or train on these."
        )
    return like


def _wide_table(*columns: str) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD, expand=True)
    table.columns[0].style = "bold"
    table.columns[0].min_width = 14
    return table


def _curve_table(report: Report) -> Table:
    table = Table("inner steps", *report.curve, title="mean ± 95 % half-width")
    curves = list(report.curve.values())
    for step in range(len(curves[0].mean)):
        cells = [f"{c.mean[step]:.4f} ± {c.half_width[step]:.4f}" for c in curves]
        table.add_row(str(step), *cells)
    return table

import dataclasses
import re

import pytest

from metajax.command_line import cli
from metajax.command_line.catalogue import LEARNERS, MODELS, TASKS
from metajax.command_line.cli import main
from metajax.command_line.forms import FORMS
from metajax.command_line.suggestions import (
    nearest_names,
    options_of,
    what_is_unknown,
)


def said(command: str, capsys) -> list[str]:
    """The lines that a wrong command is answered by."""
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err.splitlines()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *((word, ["prototypical"]) for word in ("protonet", "ProtoNets", "proto_net")),
        ("prototypical_networks", ["prototypical"]),
        ("matching_networks", ["matching"]),
        ("relation_network", ["relation"]),
        ("cnp", ["class_np", "conditional_np"]),
        ("r2d2", ["ridge"]),
        ("MetaOptNet", ["ridge", "svm"]),
        ("metasgd", ["meta_sgd"]),
        ("maml++", ["maml_plus_plus"]),
        ("MAML", ["maml"]),
        ("fomaml", ["maml", "imaml"]),
        ("warpgrad", []),
        ("-", []),
    ],
)
def test_learners_are_found_by_what_papers_call_them(word, expected):
    assert sorted(nearest_names(word, LEARNERS)) == sorted(expected)


def test_every_name_is_nearest_to_itself():
    for constructors in (LEARNERS, MODELS, TASKS):
        for name in constructors:
            assert nearest_names(name, constructors) == [name]


def test_an_unknown_name_is_answered_by_the_nearest_and_by_all(capsys):
    first, *others = said("train protonets conv4 glyphs", capsys)
    assert first == ("metajax: There is no `protonets`; did you mean `prototypical`?")
    assert others == [f"learner: {', '.join(LEARNERS)}"]
    lines = said("train prototypical conv5 glyph", capsys)
    assert lines[:2] == [
        "metajax: There is no `conv5`; did you mean `conv4`?",
        "There is no `glyph`; did you mean `glyphs`?",
    ]
    assert lines[2:] == [
        f"model: {', '.join(MODELS)}",
        f"tasks: {', '.join(TASKS)}",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train maml conv4 glyphs --learner.inner-lr 0.1",
            "There is no option `--learner.inner-lr`; did you mean "
            "`--learner.inner-optimizer.learning-rate`?",
        ),
        (
            "train maml conv4 glyphs --way 5",
            "There is no option `--way`; did you mean `--tasks.way` or "
            "`--validation.way`?",
        ),
        (
            "train prototypical conv4 sinusoid --tasks.distance=cosine",
            "There is no option `--tasks.distance`; did you mean `--learner.distance`?",
        ),
        (
            "evaluate run glyphs --shots 2",
            "There is no option `--shots`; did you mean `--tasks.shot` or `--shot`?",
        ),
        ("evaluate run --curv", "There is no option `--curv`; did you mean `--curve`?"),
        ("train maml conv4 glyphs --qqq", "There is no option `--qqq`."),
    ],
)
def test_an_unknown_option_is_answered_by_those_of_what_was_named(
    command, message, capsys
):
    first, last = said(command, capsys)
    assert first == f"metajax: {message}"
    named = [w for w in command.split() if w in {*LEARNERS, *MODELS, *TASKS}]
    asked = " ".join(["metajax", command.split()[0], *named])
    assert last == f"`{asked} --help` shows all of them."


def test_unknown_commands(capsys):
    assert said("trian maml", capsys)[0].endswith("`trian`; did you mean `train`?")
    assert said("--steps 3", capsys) == [
        "metajax: There is no command `--steps`.",
        "Commands: train, evaluate, list. Options come after them.",
    ]


@pytest.mark.parametrize("kind", ["learner", "model", "tasks"])
def test_no_option_that_exists_is_called_unknown(kind, capsys):
    """Reads the options from the help that is made from the parser."""
    for name in FORMS[kind]:
        words = {"learner": "maml", "model": "mlp", "tasks": "sinusoid", kind: name}
        command = ["train", *words.values()]
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        lines = capsys.readouterr().out.replace("│", " ").splitlines()
        options = [
            option
            for line in lines
            if re.match(r"\s*--[a-z]", line)
            for option in re.findall(r"--[a-z][a-z.-]*", line)
        ]
        assert f"--{kind}." in " ".join(options) or not dataclasses.fields(
            FORMS[kind][name]
        )
        assert what_is_unknown([*command, *options], cli._options()) is None
    command = ["evaluate", "run", "glyphs", "--split", "meta_valid", "--no-curve"]
    assert what_is_unknown(command, cli._options()) is None


def test_options_of_nested_forms():
    assert options_of(FORMS["learner"]["maml"], "learner")[:4] == [
        "--learner.inner-optimizer.name",
        "--learner.inner-optimizer.learning-rate",
        "--learner.inner-optimizer.learned",
        "--learner.inner-steps",
    ]

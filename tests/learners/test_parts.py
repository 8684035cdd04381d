"""What is no model, objective or filter is named at once, by every constructor."""

import inspect

import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import metajax
from metajax import Learner, learners, models
from metajax.types import Model

MODEL = models.mlp(3)
# What constructors ask for besides, by its name.
ASKED = {
    "model": MODEL,
    "inner_optimizer": optax.sgd(0.1),
    "optimizer": optax.sgd(0.1),
    "inner_steps": 1,
    "num_classes": 3,
    "way": 3,
    "num_outputs": 1,
    "rank": 1,
    "precision": "bfloat16",
}
PARTS = ("model", "objective", "adapts", "generates", "gates", "where")
MAKERS = {
    **{
        name: make
        for name, make in vars(learners).items()
        if inspect.isfunction(make)
        and inspect.signature(make).return_annotation is Learner
    },
    "with_lora": models.with_lora,
    "with_precision": models.with_precision,
}


def arguments(make):
    """What a constructor must be given; one of `way` and `num_outputs`."""
    parameters = inspect.signature(make).parameters
    given = {
        name: ASKED[name]
        for name, p in parameters.items()
        if p.default is p.empty and name in ASKED
    }
    if "way" in parameters and "num_outputs" in parameters:
        given["way"] = 3
    return given


CASES = [
    (name, part)
    for name, make in MAKERS.items()
    for part in PARTS
    if part in inspect.signature(make).parameters
]


@pytest.mark.parametrize(("name", "part"), CASES)
def test_wrong_parts_are_named(name, part):
    given = arguments(MAKERS[name]) | {part: 3}
    with pytest.raises(ValueError, match=f"`{part}` must be .*got 3"):
        MAKERS[name](**given)


WRONG = {
    "a Linen module": (nn.Dense(3), r"metajax.models.from_linen\(module\)"),
    "a class": (nn.Dense, r"metajax.models.from_linen\(module\)"),
    "an NNX module": (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "metajax.models.from_nnx"),
    "a model of none": (Model(None, None), "hold two functions, got init None"),
    "none": (None, "got None; `metajax.models` has"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_told_how_to_become_one(name):
    model, message = WRONG[name]
    with pytest.raises(ValueError, match=f"`model` must.*{message}"):
        learners.prototypical(model)


@pytest.mark.parametrize("objective", [lambda outputs: outputs, "mse"])
def test_objectives_of_other_arguments(objective):
    with pytest.raises(ValueError, match=r"`objective` must be .* of \(outputs, y\)"):
        learners.maml(MODEL, optax.sgd(0.1), inner_steps=1, objective=objective)


def test_filters_are_functions():
    with pytest.raises(ValueError, match=r"`adapts` .*only\('head'\)`, got 'head'"):
        learners.maml(MODEL, optax.sgd(0.1), inner_steps=1, adapts="head")


def test_metrics_and_augmentations_are_functions():
    images, labels = np.zeros((8, 4, 4, 1), np.uint8), np.repeat(np.arange(4), 2)
    table = metajax.tasks.from_arrays(images, labels)
    with pytest.raises(ValueError, match=r"`augment` must be .*\(key, images\)"):
        metajax.tasks.few_shot(table, way=2, shot=1, num_queries=1, augment=3)
    learner = learners.prototypical(models.identity())
    with pytest.raises(ValueError, match=r"`metrics_fn` must be .*\(outputs, query\)"):
        metajax.evaluate(learner, {}, lambda key: None, metrics_fn=lambda outputs: {})

"""An own learner that breaks the contract: function and contract are named."""

import jax
import jax.numpy as jnp
import optax
import pytest
from learners.entry import sample

import metajax
from metajax.models import mlp

KEPT = metajax.learners.maml(
    mlp(3, hidden_sizes=()), optax.sgd(0.1), inner_steps=0
)  # the least that there is


def logits(adapted, inputs, *, mask=None, key=None):
    return KEPT.predict(adapted, inputs)


BROKEN = {
    "adapt": (
        {"adapt": lambda params, support: params},
        r"`Learner.adapt` is called as `adapt\(meta_params, support, \*, key=None\)`",
    ),
    "predict": (
        {"predict": lambda adapted, inputs, key=None: inputs},
        r"`Learner.predict` is called as .*mask=None, key=None.*unexpected .*'mask'",
    ),
    "init": (
        {"init": lambda key: 0.0},
        r"`Learner.init` is called as `init\(key, task",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_functions_of_another_signature(name, key):
    changes, message = BROKEN[name]
    learner = KEPT._replace(**changes)
    with pytest.raises(ValueError, match=message):
        metajax.evaluate(learner, KEPT.init(key, sample(key)), sample, num_tasks=1)
    with pytest.raises(ValueError, match=message):
        metajax.train(learner, sample, optax.sgd(0.1), steps=1, tasks_per_step=1)


LOSSES = {
    "alone": (lambda *args, key: jnp.float32(0), r"must return `\(loss, metrics\)`"),
    "metrics": (lambda *args, key: (jnp.float32(0), 3), r"got \(.*, int\)"),
    "of examples": (lambda *args, key: (jnp.zeros(2), {}), r"the loss has shape \[2\]"),
    "metric": (
        lambda *args, key: (jnp.float32(0), {"error": jnp.zeros(2)}),
        r"'error' has shape \[2\]",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_another_kind(name):
    loss, message = LOSSES[name]
    learner = KEPT._replace(loss=loss)
    with pytest.raises(ValueError, match=f"`Learner.loss`.*{message}"):
        metajax.train(learner, sample, optax.sgd(0.1), steps=1, tasks_per_step=1)


ANSWERS = {
    "classes": (lambda *a, **k: jnp.argmax(logits(*a), 1), r"logits `\[n, C\]`"),
    "one row": (lambda *a, **k: logits(*a)[0], r"answer all 9 queries at once"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_another_shape(name, key):
    predict, message = ANSWERS[name]
    learner = KEPT._replace(predict=predict)
    params = KEPT.init(key, sample(key))
    with pytest.raises(ValueError, match=f"`Learner.predict.*must.*{message}"):
        metajax.evaluate(learner, params, sample, num_tasks=1, check_leakage=False)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_more_classes_than_outputs(verb, key):
    learner = metajax.learners.maml(
        mlp(2, hidden_sizes=()), optax.sgd(0.1), inner_steps=1
    )
    message = "labels of the first task go up to 2, .*2 outputs, for classes 0 to 1"
    params = jax.jit(learner.init)(key, sample(key))
    call = {
        "train": lambda: metajax.train(
            learner, sample, optax.sgd(0.1), steps=1, tasks_per_step=1, progress=False
        ),
        "evaluate": lambda: metajax.evaluate(learner, params, sample, num_tasks=1),
    }[verb]
    with pytest.raises(ValueError, match=message):
        call()


def test_functions_that_are_asked_for_must_be_there(key):
    with pytest.raises(ValueError, match="`Learner.loss` must be a function, got None"):
        metajax.train(
            KEPT._replace(loss=None), sample, optax.sgd(0.1), steps=1, tasks_per_step=1
        )
    learner = KEPT._replace(predict=None)
    with pytest.raises(ValueError, match="`Learner.predict` must be a function, got"):
        metajax.evaluate(learner, KEPT.init(key, sample(key)), sample)

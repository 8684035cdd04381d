"""No exported learner escapes the battery."""

import inspect

from learners.registry import REGISTRY

import metajax


def test_every_exported_learner_is_in_the_registry():
    exported = {
        name
        for name, value in vars(metajax.learners).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation is metajax.Learner
    }
    assert exported, "nothing is exported: this test looks in the wrong place"
    assert exported == {name.split(",")[0] for name in REGISTRY}

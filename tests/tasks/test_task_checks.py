"""`check_task`: good tasks pass, each bad one is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.task_checks import check_task
from metajax.types import Examples, Task

GOOD = Examples(np.zeros((3, 2), np.float32), np.arange(3))


def replace_first(array, value):
    array = np.array(array)
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    "examples",
    [
        GOOD,
        GOOD._replace(mask=np.array([True, False, False])),
        GOOD._replace(x={"tokens": np.ones((3, 5), int), "image": jnp.ones((3, 2))}),
        GOOD._replace(y=np.array([[-1.0], [0.0], [1.0]])),
        GOOD._replace(x=jnp.zeros((3, 2), jnp.bfloat16)),
    ],
)
def test_good_tasks_pass(examples):
    check_task(Task(examples, GOOD), "tasks")
    check_task(Task(GOOD, examples), "tasks")


def test_other_supports_are_not_looked_at():
    environment = {"gravity": jnp.nan, "key": jax.random.key(0)}
    check_task(Task(environment, environment), "tasks")


ERRORS = {
    "nan": (
        {"x": replace_first(GOOD.x, np.nan)},
        r"x` must be finite, but 1 of 3 examples hold NaN or infinity, the first at p",
    ),
    "infinite": (
        {"y": replace_first(GOOD.x, np.inf)},
        r"y` must be finite, but 1 of 3",
    ),
    "half": (
        {"x": jnp.full((3, 2), jnp.inf, jnp.bfloat16)},
        r"x` must be finite, but 3 of 3",
    ),
    "leaf": ({"x": (GOOD.x, replace_first(GOOD.x, np.nan))}, r"x` must be finite"),
    "padding": (
        {
            "x": replace_first(GOOD.x, np.nan),
            "mask": np.array([False, True, True]),
        },
        r"x` must be finite, but 1 of 3",
    ),
    "negative": ({"y": np.array([-1, 0, 1])}, r"y` holds integers.*lowest is -1"),
    "sizes": ({"y": np.arange(4)}, r"y` must have as many .* of the set, 3, got 4"),
    "leaves": ({"x": (GOOD.x, GOOD.x[:2])}, r"x` must have as many .*3, got 2"),
    "scalar": ({"x": np.float32(0)}, r"x` must have a leading axis.*got shape \(\)"),
    "empty": (
        {"x": GOOD.x[:0]},
        r"x` must have a leading axis of at least one.*\(0, 2\)",
    ),
    "nothing": ({"x": {}}, r"x` holds no array"),
    "mask size": (
        {"mask": np.ones(2, bool)},
        r"mask` must be bool \[3\].*got bool \[2\]",
    ),
    "mask type": ({"mask": np.ones(3)}, r"mask` must be bool \[3\].*got float64 \[3\]"),
    "hidden": ({"mask": np.zeros(3, bool)}, r"mask` hides all 3 examples"),
}


@pytest.mark.parametrize("part", Task._fields)
@pytest.mark.parametrize("case", ERRORS)
def test_bad_tasks_are_named(case, part):
    fields, message = ERRORS[case]
    task = Task(GOOD, GOOD)._replace(**{part: GOOD._replace(**fields)})
    with pytest.raises(ValueError, match=rf"^glyphs: `{part}\.{message}"):
        check_task(task, "glyphs")


def test_a_pair_is_not_a_task():
    with pytest.raises(ValueError, match=r"`tasks` must give a `Task\(.*got tuple"):
        check_task((GOOD, GOOD), "tasks")

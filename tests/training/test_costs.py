import jax
import optax
import pytest

from metajax.inner.unroll import GRADIENT_MODES
from metajax.learners.gradient.maml import maml
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.training.costs import Cost, Explanation, explain


def make(gradient):
    model = mlp(1, hidden_sizes=(16,))
    return maml(
        model,
        optax.sgd(0.01),
        inner_steps=8,
        objective=squared_error,
        gradient=gradient,
    )


@pytest.fixture(scope="module")
def explained():
    return explain(make, sinusoid(), tasks_per_step=4, time=True)


def cost(gradient, *, flops=1.0, memory=100, seconds=None):
    is_exact = gradient != "first_order"
    return Cost(gradient, flops, 1.0, memory, memory, 0.1, seconds, is_exact)


def explanation(*costs, limit=None):
    return Explanation(costs, 4, None, limit)


def test_every_mode_is_measured(explained):
    assert [cost.gradient for cost in explained.costs] == list(GRADIENT_MODES)
    costs = {cost.gradient: cost for cost in explained.costs}
    assert all(c.seconds > 0 and c.compile_seconds > 0 for c in costs.values())
    # What is known of the modes: recomputation costs operations and saves memory.
    assert costs["first_order"].flops < costs["reverse"].flops < costs["remat"].flops
    assert costs["remat"].temporary < costs["reverse"].temporary
    assert costs["first_order"].temporary < costs["remat"].temporary
    fastest = min(GRADIENT_MODES[:3], key=lambda mode: costs[mode].seconds)
    assert explained.choice == fastest
    assert all(cost.memory > cost.temporary for cost in explained.costs)


def test_table(explained):
    lines = str(explained).splitlines()
    assert lines[0] == "4 tasks a step, 4 at once"
    assert lines[1].split() == [
        *("gradient", "GFLOP", "FLOP/byte", "memory", "temporary", "compile", "time")
    ]
    assert [line.split()[0] for line in lines[2:6]] == list(GRADIENT_MODES)
    assert lines[6] == f"choose gradient={explained.choice!r}"


def test_nothing_runs_unless_it_is_timed():
    def sample(key):
        jax.debug.callback(lambda: pytest.fail("it ran"))
        return sinusoid()(key)

    one = explain(make("remat"), sample, tasks_per_step=4, tasks_per_block=2)
    assert one.tasks_per_block == 2
    [only] = one.costs
    assert (only.gradient, only.seconds) == ("as built", None)
    first, _, last = str(one).split("\n")  # nothing to choose from
    assert first == "4 tasks a step, 2 at once"
    assert last.startswith("as built")


def test_choice_without_times_weighs_operations_against_memory():
    frugal = cost("remat", flops=1.3, memory=50)
    assert explanation(cost("reverse"), frugal).choice == "remat"
    slower = cost("remat", flops=1.6, memory=50)
    assert explanation(cost("reverse"), slower).choice == "reverse"
    assert explanation(cost("reverse"), cost("first_order", flops=0.1)).choice == (
        "reverse"
    )


def test_choice_fits_the_memory():
    costs = cost("reverse", seconds=0.1), cost("remat", memory=50, seconds=0.2)
    assert explanation(*costs, limit=100).choice == "reverse"
    tight = explanation(*costs, limit=99)
    assert tight.choice == "remat"
    assert "does not fit" in str(tight).splitlines()[2]
    assert "does not fit" not in str(tight).splitlines()[3]
    none = explanation(*costs, limit=49)
    assert none.choice is None
    assert str(none).splitlines()[-1].startswith("Nothing fits: 4.768e-05 MiB are")
    given = explain(make("remat"), sinusoid(), tasks_per_step=2, memory_limit=1000)
    assert given.choice is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tasks_per_step": 0}, ValueError, "`tasks_per_step` must be .*, got 0"),
        ({"tasks_per_block": 3}, ValueError, "got blocks of 3 for 4 tasks"),
        ({"tasks_per_block": 0}, ValueError, "`tasks_per_block` must be .*, got 0"),
        ({"learner": 3}, TypeError, "`learner` must be a Learner, or .*, got int"),
        ({"learner": lambda mode: maml(mlp(1), 3, inner_steps=1)}, TypeError, "got 3"),
    ],
)
def test_errors(arguments, error, match):
    arguments = {"learner": make, "tasks_per_step": 4} | arguments
    with pytest.raises(error, match=match):
        explain(arguments.pop("learner"), sinusoid(), **arguments)

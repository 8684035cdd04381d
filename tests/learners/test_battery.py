"""What every learner must satisfy, whatever it does inside."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, pad
from learners.registry import REGISTRY

import metajax
from metajax.evaluation.transduction import leakage
from metajax.objectives import cross_entropy
from metajax.training.checkpoints import Checkpoints
from metajax.training.outer_loop import init_state, reverse_mode
from metajax.types import NO_STREAM, Examples, Learner, Task

# One learner of each builder.
EAGER = ("maml", "prototypical", "lstm_learner", "conditional_np")
# Orbax sees arrays; these have the most unlike states.
IN_FILES = ("maml_plus_plus", "latent_np", "optimizer_learner, lstm")

# Those with loops or systems, whose parts must be of one type, or gradients of their
# own: of the entries, and on inputs that no network has made wider.
LOOPS = {
    name: REGISTRY[name].make
    for name in (
        "in_context",
        "imaml",
        "kernel_svm",
        "lstm_generator",
        "maml, learned momentum",
        "mann",
        "mm_net",
        "sgdstore",
    )
} | {
    "ridge": lambda: metajax.learners.ridge(metajax.models.identity(), way=WAY),
    "matching": lambda: metajax.learners.matching(
        metajax.models.identity(), full_context=True
    ),
}

everyone = pytest.mark.parametrize("name", REGISTRY)


def law(name):
    """For every entry that must satisfy a law."""
    names = [key for key, entry in REGISTRY.items() if name in entry.laws]
    return pytest.mark.parametrize("name", names)


close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-5)


KEY = jax.random.key(0)


@functools.cache
def sampler(sample):
    """One program for all learners that have these tasks."""
    return jax.jit(sample)


@functools.lru_cache(maxsize=1)
def built(name: str) -> tuple[Learner, Task, chex.ArrayTree]:
    """A learner, a task, and meta-parameters moved off their initial values.

    The noise is NumPy's, as every operation of JAX would be a program to compile. At
    this seed no learner is near a tie that rounding would break.
    """
    learner = REGISTRY[name].make()
    learner = learner._replace(adapt=jax.jit(learner.adapt))  # traced once a shape
    task = sampler(REGISTRY[name].sample)(jax.random.key(1))
    noise = np.random.default_rng(9)
    moved = jax.tree.map(
        lambda leaf: jnp.asarray(
            leaf + 0.1 * noise.standard_normal(leaf.shape, leaf.dtype)
        ),
        jax.device_get(jax.jit(learner.init)(jax.random.key(2), task)),
    )
    return learner, task, moved


@functools.lru_cache(maxsize=1)
def compiled_answer(name: str):
    """The learner's answer to a query set, as a compiled function.

    Compiling is what the battery costs: sets are as `sample` makes them, or `padded`.
    """
    learner, _, _ = built(name)

    def answer(meta_params, support, query):
        adapted = learner.adapt(meta_params, support, key=None)
        return learner.predict(adapted, query.x, mask=query.mask, key=None)

    return jax.jit(answer)


@functools.lru_cache(maxsize=1)
def compiled_gradient(name: str):
    """Loss and gradient of one task, traced once, and whether they draw numbers."""
    learner, task, meta_params = built(name)
    chex.clear_trace_counter()
    once = chex.assert_max_traces(n=1)(learner.loss)
    gradient = jax.jit(jax.value_and_grad(once, has_aux=True))
    jaxpr = gradient.trace(meta_params, task, key=KEY).jaxpr.jaxpr
    key = jaxpr.invars[-1]
    return gradient, any(key in equation.invars for equation in jaxpr.eqns)


def descended(meta_params, gradient):
    return jax.tree.map(
        lambda p, g: jnp.asarray(p - np.float32(1e-3) * g),
        *jax.device_get((meta_params, gradient)),
    )


def padded(task: Task) -> Task:
    return Task(pad(task.support, 3), pad(task.query, 4))


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@pytest.mark.parametrize("name", EAGER)
def test_jit_equals_no_jit(name, key):
    learner, task, meta_params = built(name)
    close(jax.jit(learner.init)(key, task), learner.init(key, task))
    close(
        jax.jit(learner.loss)(meta_params, task, key=key),
        learner.loss(meta_params, task, key=key),
    )


@everyone
def test_meta_parameters_are_arrays_and_answers_are_as_many_as_queries(name):
    _, task, meta_params = built(name)
    for leaf in jax.tree.leaves(meta_params):
        assert isinstance(leaf, jax.Array)
        assert jnp.issubdtype(leaf.dtype, jnp.floating)
    answer = compiled_answer(name)(meta_params, task.support, task.query)
    assert {len(leaf) for leaf in jax.tree.leaves(answer)} == {len(task.query.y)}


@law("steps")
def test_one_trace_over_repeated_steps_and_same_key_same_result(name):
    learner, task, meta_params = built(name)
    gradient, _ = compiled_gradient(name)
    draw = sampler(REGISTRY[name].sample)
    # Traced anew each time, so that what does not come from the key would differ.
    first, again = (
        jax.make_jaxpr(lambda key, task: learner.init(key, task))(KEY, task)
        for _ in range(2)
    )
    assert str(first) == str(again)
    chex.assert_trees_all_equal(first.consts, again.consts)
    for i in range(3):
        task = draw(jax.random.key(10 + i))
        found = gradient(meta_params, task, key=KEY)
        chex.assert_trees_all_equal(found, gradient(meta_params, task, key=KEY))
        chex.assert_trees_all_equal_shapes_and_dtypes(found[1], meta_params)
        chex.assert_tree_all_finite(found)
        meta_params = descended(meta_params, found[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LOOPS)
def test_double_precision_meets_single_precision(name, dtype):
    """Under `jax_enable_x64` parameters, tasks and labels are of different types."""
    learner, sample = LOOPS[name](), REGISTRY[name].sample

    def run(key):
        support, query = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf,
            sample(key),
        )
        params = learner.init(key, Task(support, query))
        loss = functools.partial(learner.loss, task=Task(support, query), key=key)
        gradient = jax.grad(lambda params: loss(params)[0])(params)
        answer = learner.predict(learner.adapt(params, support, key=None), query.x)
        if learner.stream != NO_STREAM:
            first = learner.stream.start(params)
            second, _ = learner.stream.observe(first, support.x[0], support.y[0])
            chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
        return answer

    with jax.enable_x64(True):
        answer = jax.eval_shape(run, KEY)
    assert {leaf.dtype.kind for leaf in jax.tree.leaves(answer)} == {"f"}


@law("batch")
def test_padded_in_a_batch_equals_one_by_one(name):
    """`vmap` over tasks is a loop, and masked examples are as if absent."""
    learner, task, meta_params = built(name)
    one, draws = compiled_gradient(name)
    key = KEY
    if draws:  # as many numbers as there are rows, padding and all: ask for none
        one, key = jax.jit(jax.value_and_grad(learner.loss, has_aux=True)), None
    # Tasks on which no learner comes near a tie, which rounding would break.
    draw = sampler(REGISTRY[name].sample)
    tasks = [task, *(draw(jax.random.key(seed)) for seed in (5, 6))]
    gradient = jax.value_and_grad(learner.loss, has_aux=True)
    batched = jax.jit(jax.vmap(gradient, (None, 0)))
    batch = stack([padded(task) for task in tasks])
    expected = stack([one(meta_params, t, key=key) for t in tasks])
    # Where terms cancel (a bias before a normalisation), what remains is the rounding
    # of terms, which are as large as other gradients.
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected))
    close(batched(meta_params, batch), expected, atol=1e-5 * max(1, largest))


@law("masks")
def test_masked_examples_do_not_change_answers(name):
    _, task, meta_params = built(name)
    answer = compiled_answer(name)
    all_outputs = jax.tree.leaves(answer(meta_params, *padded(task)))
    all_expected = jax.tree.leaves(answer(meta_params, *task))
    for outputs, expected in zip(all_outputs, all_expected, strict=True):
        outputs = outputs[: len(task.query.y)]
        # More support rows may mean more columns, all of them for absent classes.
        close(outputs[:, : expected.shape[1]], expected)
        assert np.all(outputs[:, expected.shape[1] :] == -np.inf)


@law("order")
def test_support_order_does_not_matter(name, key):
    if not REGISTRY[name].ignores_order:
        pytest.skip("its support set is read as a sequence")
    _, task, meta_params = built(name)
    answer = compiled_answer(name)
    order = jax.random.permutation(key, len(task.support.y))
    shuffled = Examples(task.support.x[order], task.support.y[order])
    close(
        answer(meta_params, shuffled, task.query),
        answer(meta_params, task.support, task.query),
    )


@law("leakage")
def test_queries_do_not_leak(name):
    learner, task, meta_params = built(name)
    found = leakage(learner, meta_params, task)
    assert found.is_inductive == REGISTRY[name].is_inductive, found


@law("labels")
def test_adapting_lowers_the_support_loss(name):
    if not REGISTRY[name].uses_labels_untrained:
        pytest.skip("what it makes of labels is all learned, or they are not asked")
    _, task, meta_params = built(name)
    answer = compiled_answer(name)

    def loss_after(labels):
        support = Examples(task.support.x, labels)
        # Asked about its own support set, in shapes that are compiled already.
        query = pad(task.support, len(task.query.y) + 4 - len(labels))
        outputs = answer(meta_params, pad(support, 3), query)[: len(labels)]
        return jnp.mean(cross_entropy(outputs, task.support.y))

    labels = task.support.y
    assert loss_after(labels) < loss_after(jnp.roll(labels, 2))


@pytest.mark.parametrize("name", IN_FILES)
def test_checkpoint_round_trip(name, tmp_path):
    learner, task, _ = built(name)
    state = init_state(KEY, learner, task, optax.adam(1e-3), reverse_mode())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, {"state": state}, {"note": name})
    step, trees, record = checkpoints.restore_latest({"state": state})
    checkpoints.close()
    assert (step, record) == (0, {"note": name})
    chex.assert_trees_all_equal(trees["state"], state)
    chex.assert_trees_all_equal_shapes_and_dtypes(trees["state"], state)

"""Learners that read examples one after another, and how they are judged."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import pad, sample
from learners.registry import REGISTRY

import metajax
from metajax.builders.streams import Reader, stream_learner
from metajax.types import NO_STREAM, Examples, Learner, Stream, Task

STREAMS = [name for name, entry in REGISTRY.items() if entry.make().stream != NO_STREAM]


def test_there_are_streams():
    assert {"mann", "lstm_learner", "sgdstore", "in_context", "snail", "mm_net"} <= set(
        STREAMS
    )


def built(name: str) -> tuple[Learner, chex.ArrayTree, Examples, Task]:
    """A learner, parameters, and a sequence of 6 examples in mixed order.

    Its functions are compiled: operation by operation, some take a gigabyte.
    """
    learner = REGISTRY[name].make()
    learner = learner._replace(
        **{part: jax.jit(getattr(learner, part)) for part in Learner._fields[:4]}
    )
    task = sample(jax.random.key(1))
    meta_params = learner.init(jax.random.key(2), task)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    return (
        learner,
        meta_params,
        Examples(task.support.x[order], task.support.y[order]),
        task,
    )


@pytest.mark.parametrize("name", STREAMS)
def test_stream_is_adapt_and_predict_is_its_answer(name):
    learner, params, sequence, _ = built(name)
    adapted, outputs = jax.jit(
        lambda p, s: metajax.evaluation.prequential(learner, p, s)
    )(params, sequence)
    first = learner.stream.start(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, adapted)
    predict = jax.jit(learner.predict)
    for num in (0, 3):
        seen = Examples(sequence.x, sequence.y, jnp.arange(6) < num)
        behind = learner.adapt(params, seen)
        asked = predict(behind, sequence.x)[num]
        np.testing.assert_allclose(outputs[num], asked, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(
        adapted, learner.adapt(params, sequence), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", STREAMS)
def test_later_examples_change_no_earlier_answer(name):
    learner, params, sequence, _ = built(name)

    @jax.jit
    def answers(x, y):
        _, outputs = metajax.evaluation.prequential(learner, params, Examples(x, y))
        return jnp.where(jnp.isfinite(outputs), outputs, 0)

    # By gradients: [answer, output, input, feature].
    jacobian = jax.jit(jax.jacrev(answers))(sequence.x, sequence.y)
    influence = np.abs(jacobian).max(axis=(1, 3))
    assert np.all(np.triu(influence, 1) == 0)
    assert np.all(influence[-1, -3:] > 0)
    # By other inputs and labels from the fourth example on.
    x, y = sequence.x.at[3:].add(1.0), sequence.y.at[3:].set(0)
    before = answers(sequence.x, sequence.y)
    np.testing.assert_array_equal(answers(x, sequence.y)[:3], before[:3])
    after = answers(sequence.x, y)
    np.testing.assert_array_equal(after[:4], before[:4])
    assert not np.allclose(after[4:], before[4:])


@pytest.mark.parametrize("name", STREAMS)
def test_masked_examples_are_stepped_over(name):
    learner, params, sequence, task = built(name)
    hidden = jnp.asarray([True, False, True, True, False, True])
    kept = Examples(sequence.x[hidden], sequence.y[hidden])
    x = jnp.where(hidden[:, None], sequence.x, jnp.nan)
    masked = Examples(x, jnp.where(hidden, sequence.y, -7), hidden)
    answer = [
        learner.predict(learner.adapt(params, examples), task.query.x)
        for examples in (masked, kept)
    ]
    np.testing.assert_allclose(*answer, rtol=2e-5, atol=1e-6)
    # And leave no trace in the gradient.
    gradient = jax.grad(lambda p: learner.loss(p, Task(masked, task.query))[0])(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", [n for n in STREAMS if not n.startswith("mm_net")])
def test_empty_support(name):
    learner, params, sequence, task = built(name)
    empty = Examples(sequence.x[:0], sequence.y[:0])
    outputs = learner.predict(learner.adapt(params, empty), task.query.x)
    start = learner.predict(learner.stream.start(params), task.query.x)
    assert np.all(np.isfinite(outputs))
    np.testing.assert_allclose(outputs, start, rtol=1e-6, atol=1e-6)
    hidden = Examples(sequence.x, sequence.y, jnp.zeros(6, bool))
    values = []
    for support in (empty, hidden):
        loss = jax.value_and_grad(
            lambda p, s=support: learner.loss(p, Task(s, task.query))[0]
        )
        value, gradient = loss(params)
        values.append(value)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_loss_of_a_sequence_counts_every_example_once(key):
    learner, params, sequence, task = built("mann")
    support, query = pad(sequence, 2), pad(task.query, 3)
    value, metrics = learner.loss(params, Task(support, query))
    adapted, outputs = metajax.evaluation.prequential(learner, params, sequence)
    asked = learner.predict(adapted, task.query.x)
    logits = np.concatenate([outputs, asked])
    labels = np.concatenate([sequence.y, task.query.y])
    logs = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(value, -np.mean(logs), rtol=1e-5)
    right = np.mean(np.argmax(outputs, axis=1) == sequence.y)
    np.testing.assert_allclose(metrics["sequence_accuracy"], right, rtol=1e-6)


def test_a_key_draws_the_order(key):
    learner, params, sequence, task = built("mann")
    order = jax.random.permutation(jax.random.split(key)[0], 6)
    expected = Examples(sequence.x[order], sequence.y[order])
    chex.assert_trees_all_equal(
        learner.adapt(params, sequence, key=key), learner.adapt(params, expected)
    )
    values = [
        learner.loss(params, Task(sequence, task.query), key=k)[0]
        for k in (None, *jax.random.split(key, 2))
    ]
    assert len(set(map(float, values))) == 3


def test_regression_targets(key):
    tasks = metajax.tasks.sinusoid(shot=4, num_queries=3)
    learner = metajax.learners.in_context(
        metajax.models.identity(),
        num_outputs=1,
        token_size=8,
        layers=1,
        heads=2,
    )
    task = tasks(key)
    params = learner.init(key, task)
    _, outputs = metajax.evaluation.prequential(learner, params, task.support)
    asked = learner.predict(learner.adapt(params, task.support), task.query.x)
    expected = np.mean(
        np.square(
            np.concatenate([outputs, asked])
            - np.concatenate([task.support.y, task.query.y])
        )
    )
    value, metrics = learner.loss(params, task)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics == {}


@pytest.mark.parametrize("name", STREAMS)
def test_a_label_that_is_no_class_is_not_passed_over(name):
    learner, params, sequence, task = built(name)
    wrong = Examples(sequence.x, sequence.y.at[5].set(9))
    outputs = learner.predict(learner.adapt(params, wrong), task.query.x)
    assert np.any(np.isnan(outputs))
    assert not np.any(np.isfinite(outputs))


def _by_heart() -> Learner:
    """Inputs are codes of classes: right from the second instance on."""

    def start(meta_params):
        return jnp.full(100, -1)

    def observe(adapted, x, y):
        code = x[0].astype(int)
        label = adapted[code]
        return adapted.at[code].set(y), jax.nn.one_hot(label, 4)

    return Learner(None, None, None, None, stream=Stream(start, observe))


def test_instance_accuracy_counts_instances(key):
    def tasks(key):
        codes = jax.random.choice(key, 100, (4,), replace=False)
        x = jnp.repeat(codes, 3)[:, None].astype(float)
        support = Examples(x, jnp.repeat(jnp.arange(4), 3))
        return Task(support, support)

    found = metajax.evaluation.instance_accuracy(
        _by_heart(), (), tasks, num_tasks=30, tasks_per_block=20
    )
    assert found.num_tasks == 40
    # Before anything is seen, the answer is class 0, which is right for one of four.
    np.testing.assert_allclose(found.mean, [0.25, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(found.half_width, 0, atol=1e-6)


def test_instance_accuracy_reads_in_random_order(key):
    def tasks(key):
        y = jnp.repeat(jnp.arange(2), 2)
        support = Examples(jax.random.normal(key, (4, 1)), y)
        return Task(support, support)

    def start(meta_params):
        return jnp.int32(0)

    def observe(adapted, x, y):
        # Says class 0 twice and then class 1 twice: all right in order of class.
        return adapted + 1, jax.nn.one_hot(adapted // 2, 2)

    learner = Learner(None, None, None, None, stream=Stream(start, observe))
    found = metajax.evaluation.instance_accuracy(learner, (), tasks, num_tasks=200)
    assert np.all(np.abs(found.mean - 0.5) < 4 * found.half_width / 1.96)
    assert np.all(found.half_width > 0.02)


def _echo(**changes) -> Learner:
    reader = Reader(
        init=lambda key, features, label: jnp.zeros(()),
        start=lambda params: jnp.zeros(2),
        answer=lambda params, state, features: state,
        step=None,
        read=lambda params, features, labels, is_real: (jnp.zeros(2), None),
    )
    arguments = {
        "way": 2,
        "num_outputs": None,
        "objective": metajax.objectives.cross_entropy,
        "trains_on": "query",
    }
    return stream_learner(metajax.models.identity(), reader, **(arguments | changes))


BAD = {
    "objective": (
        lambda: metajax.learners.lstm_learner(
            metajax.models.identity(),
            num_outputs=2,
            objective=metajax.objectives.cross_entropy,
        ),
        "`num_outputs` is 2, .* and the objective is cross_entropy; give `way`",
    ),
    "neither": (
        lambda: metajax.learners.lstm_learner(metajax.models.identity()),
        "Give either `way`, .* or `num_outputs`, .* got None and None",
    ),
    "both": (
        lambda: metajax.learners.mann(metajax.models.identity(), way=2, num_outputs=2),
        "Give either `way`, .* or `num_outputs`, .* got 2 and 2",
    ),
    "numbers": (
        lambda: metajax.learners.mann(metajax.models.identity(), num_outputs=0),
        "`num_outputs` must be an integer of at least 1, got 0",
    ),
    "way": (
        lambda: metajax.learners.mann(metajax.models.identity(), way=0),
        "`way` must be an integer of at least 1, got 0",
    ),
    "trains on": (
        lambda: metajax.learners.mann(
            metajax.models.identity(), way=2, trains_on="support"
        ),
        "`trains_on` must be one of query, sequence",
    ),
    "batch statistics": (
        lambda: metajax.learners.mann(
            metajax.models.mlp(4, normalization="batch"), way=2
        ),
        "normalization='batch', by which a later example changes .* Use 'layer'",
    ),
    "no answers": (
        lambda: _echo(trains_on="sequence"),
        "reads the whole support set at once; train on 'query'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_targets_and_sizes(key):
    learner, params, sequence, task = built("mann")
    wide = Examples(jnp.zeros((6, 9)), sequence.y)
    message = "another size than those that the parameters were made for"
    with pytest.raises(ValueError, match=message):
        learner.adapt(params, wide)
    with pytest.raises(ValueError, match=message):
        learner.predict(learner.adapt(params, sequence), jnp.zeros((2, 9)))
    with pytest.raises(ValueError, match="`way` is 3, and targets are not labels"):
        learner.adapt(params, sequence._replace(y=jnp.zeros((6, 1))))
    of_numbers = _echo(way=None, num_outputs=1, objective=None)
    with pytest.raises(ValueError, match="are integers, so class labels: give `way`"):
        of_numbers.init(key, task)


def test_what_is_no_stream(key):
    learner = _echo()
    with pytest.raises(ValueError, match="as a stream: it has none"):
        metajax.evaluation.prequential(learner, (), sample(key).support)
    learner, params, sequence, _ = built("mann")
    with pytest.raises(ValueError, match="has no padding; leave out its mask"):
        metajax.evaluation.prequential(learner, params, pad(sequence, 1))

    def uneven(key):
        support = Examples(jnp.zeros((3, 4)), jnp.asarray([0, 0, 1]))
        return Task(support, support)

    with pytest.raises(ValueError, match=r"the same number .* got \[2, 1\]"):
        metajax.evaluation.instance_accuracy(learner, params, uneven)


def test_what_is_no_example_is_named(key):
    learner = metajax.learners.mann(
        metajax.models.identity(), way=3, hidden_size=2, slots=2, width=2, heads=1
    )
    x, y = jnp.ones((2, 4)), jnp.asarray([0, 1])
    task = Task(Examples(x, y), Examples(x, y))
    state = learner.stream.start(learner.init(key, task))
    for label in (3, -1):
        with pytest.raises(
            ValueError, match=f"one of the 3 classes, 0 to 2, got {label}"
        ):
            learner.stream.observe(state, x[0], label)
    with pytest.raises(
        ValueError, match=r"a scalar `\[\]`, got shape \[1\].*x\[0\], y"
    ):
        learner.stream.observe(state, x[:1], y[:1])
    with pytest.raises(ValueError, match=r"`predict` and `adapt` take batches"):
        learner.predict(state, x[0])


def test_a_target_of_another_length_is_named(key):
    learner = metajax.learners.mann(
        metajax.models.identity(),
        num_outputs=2,
        hidden_size=2,
        slots=2,
        width=2,
        heads=1,
    )
    x, y = jnp.ones((3, 4)), jnp.ones((3, 2))
    task = Task(Examples(x, y), Examples(x, y))
    state = learner.stream.start(learner.init(key, task))
    learner.stream.observe(state, x[0], y[0])
    for target in (y, jnp.ones(3)):
        with pytest.raises(ValueError, match=r"has `num_outputs` numbers, 2, got sha"):
            learner.stream.observe(state, x[0], target)


def test_learners_of_whole_sets_have_no_stream():
    learner = metajax.learners.prototypical(metajax.models.identity())
    with pytest.raises(ValueError, match="This learner has no stream.*`mann`"):
        learner.stream.start({})

"""Estimators: means against exact gradients, the pieces they take, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import SUPPORT, constant_model, constant_task
from learners.entry import sample
from quadratic import quadratic, same_bits
from quadratic import sample as sample_centres

import metajax
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.objectives import squared_error
from metajax.training.outer_gradients import evolution_strategies, pes, truncated
from metajax.training.outer_loop import reverse_mode
from metajax.training.trainer import train

STEPS, START, RATE = 4, (1.0, -2.0), 0.3


def quadratic_maml():
    """Its loss is quadratic in theta, and theta counts at the start alone."""
    return metajax.learners.maml(
        constant_model(START),
        optax.sgd(RATE),
        inner_steps=STEPS,
        objective=squared_error,
    )


def quadratic_rate(judges, model=None):
    """The learned rate counts in every step."""
    return metajax.learners.optimizer_learner(
        constant_model(START) if model is None else model,
        learned(optax.sgd, learning_rate=HyperParameter(RATE)),
        inner_steps=STEPS,
        judges=judges,
        objective=squared_error,
    )


# Learners of `constant_task`, and noise of which the bias is 0 or below 0.5 %.
LEARNERS = {
    "maml": (quadratic_maml, 0.5),
    "rate by path": (lambda: quadratic_rate("path"), 0.01),
    "rate by query": (lambda: quadratic_rate("query"), 0.01),
}


def one(tree):
    """As a batch of one task."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def exact_gradient(learner, params, task):
    return flat(jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params))


def assert_mean(samples, expected, *, num_errors=4):
    """Samples `[N, D]` have this mean, up to four standard errors of it."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) < num_errors * error)
    # And the test can tell it from 0 and from half of it.
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(expected)


def cycle(outer_gradient, params, task, key, num_pieces):
    """What `num_pieces` outer steps at one place give: gradients, losses, states."""

    def step(state, key):
        result = outer_gradient.gradient(None, params, one(task), key[None], state)
        gradient, loss, _, state = result
        return state, (flat(gradient), loss, state)

    keys = jax.random.split(key, num_pieces)
    return jax.lax.scan(step, outer_gradient.init(key, params, task), keys)[1]


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_evolution_strategies_are_unbiased(num_pairs, key):
    learner, task = quadratic_maml(), constant_task()
    params = learner.init(key, task)
    outer_gradient = evolution_strategies(sigma=0.5, num_pairs=num_pairs)

    @jax.jit
    @jax.vmap
    def run(key):
        result = outer_gradient.gradient(learner.loss, params, one(task), key[None], ())
        return flat(result[0]), result[1]

    gradients, losses = run(jax.random.split(key, 10_000))
    expected = exact_gradient(learner, params, task)
    assert_mean(gradients, expected)
    # The mean over both signs, of which the noise adds half a mean square.
    noise = 0.5 * 0.5**2 * 2 * (1 - RATE) ** (2 * STEPS)
    assert_mean(losses[:, None], learner.loss(params, task)[0] + noise)
    # Var((g.e) e) = g g' + |g|^2 for each pair, and pairs are independent.
    variance = (expected**2 + np.sum(expected**2)) / num_pairs
    np.testing.assert_allclose(np.var(gradients, axis=0), variance, rtol=0.1)


def test_evolution_strategies_need_no_derivative(key):
    """Of the sign of theta at 0: smoothed by the noise, its slope is 2 N(0; 0, s^2)."""
    sigma, keys = 0.1, jax.random.split(key, 10_000)

    def loss(params, task, *, key):
        return jnp.sign(params["theta"]), {"theta": params["theta"]}

    params = {"theta": jnp.zeros(()), "count": jnp.int32(3)}
    outer_gradient = evolution_strategies(sigma=sigma)
    run = jax.jit(lambda keys: outer_gradient.gradient(loss, params, (), keys, ()))
    gradient, value, metrics, _ = run(keys)
    expected = np.sqrt(2 / np.pi) / sigma
    error = np.sqrt(1 - 2 / np.pi) / sigma / np.sqrt(len(keys))
    assert abs(gradient["theta"] - expected) < 4 * error
    assert gradient["count"] == 0
    chex.assert_trees_all_equal_dtypes(gradient, params)
    assert value == 0  # of the two signs
    np.testing.assert_allclose(metrics["theta"], 0, atol=1e-6)


def test_both_signs_share_their_randomness(key):
    """Otherwise the noise of this loss would drown its slope of 1."""

    def loss(params, task, *, key):
        return params + 1024 * jax.random.normal(key), {}

    outer_gradient = evolution_strategies(sigma=1.0)
    keys = jax.random.split(key, 100)
    run = jax.jit(
        lambda keys: outer_gradient.gradient(loss, jnp.zeros(()), (), keys, ())
    )
    assert 0 < run(keys)[0] < 2


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", LEARNERS)
def test_pes_is_unbiased_over_a_cycle(name, steps, key):
    """Also in the second loop, which starts where the first one ends."""
    make, sigma = LEARNERS[name]
    learner, task = make(), constant_task()
    params = learner.init(key, task)
    outer_gradient = pes(learner, inner_steps=steps, num_tasks=1, sigma=sigma)
    num = STEPS // steps

    @jax.jit
    @jax.vmap
    def run(key):
        gradients, losses, state = cycle(outer_gradient, params, task, key, 2 * num)
        return gradients, losses, flat(state.sum_of_noise)

    gradients, losses, sums = run(jax.random.split(key, 20_000))
    expected = exact_gradient(learner, params, task)
    assert_mean(gradients[:, num:].mean(axis=1), expected)
    assert_mean(gradients[:, :num].mean(axis=1), expected)
    # Noise adds up within a loop and starts afresh with the next one; the standard
    # error of a relative variance over 20000 is 1 %.
    variances = np.var(sums.reshape(len(sums), 2 * num, -1), axis=0) / sigma**2
    counts = 1 + np.arange(2 * num) % num
    np.testing.assert_allclose(
        variances, np.broadcast_to(counts[:, None], variances.shape), rtol=0.05
    )


def slope_of_pieces(distance, rate, steps):
    """d/d rate of the mean of half the squared distance at phi_1 .. phi_steps."""
    t = np.arange(1, steps + 1)
    return np.mean(-t * (1 - rate) ** (2 * t - 1)) * distance


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_truncated_is_exact_for_the_whole_and_biased_for_less(steps, key):
    learner, task = quadratic_rate("path"), constant_task()
    params = learner.init(key, task)
    outer_gradient = truncated(learner, inner_steps=steps, num_tasks=1)
    num = STEPS // steps
    run = jax.jit(lambda key: cycle(outer_gradient, params, task, key, 2 * num))
    gradients, losses, _ = run(key)
    # What came before a piece is a constant to it.
    start = np.sum(np.square(np.array(START) - SUPPORT))
    distances = [start * (1 - RATE) ** (2 * steps * piece) for piece in range(num)]
    slopes = [slope_of_pieces(distance, RATE, steps) for distance in distances]
    np.testing.assert_allclose(gradients[:, 0], slopes * 2, rtol=1e-4)
    np.testing.assert_allclose(losses[:num].mean(), learner.loss(params, task)[0])
    expected = exact_gradient(learner, params, task)
    bias = abs(np.mean(slopes) - expected) / abs(expected)
    assert (bias < 1e-5) == (steps == STEPS)
    assert (bias > 0.1) == (steps < STEPS)


@pytest.mark.parametrize("judges", ["path", "query"])
def test_truncated_by_the_whole_loop_is_reverse_mode(judges, key):
    """On several tasks, which start anew each time."""
    learner = metajax.learners.optimizer_learner(
        constant_model((1.0, -1.0, 0.5)),
        learned(
            optax.sgd,
            learning_rate=HyperParameter(0.1, inner_steps=2),
            momentum=HyperParameter(0.5, domain="unit"),
        ),
        inner_steps=3,
        judges=judges,
        objective=squared_error,
    )
    keys = jax.random.split(key, 2)
    tasks = jax.vmap(sample_centres)(keys)
    params = learner.init(key, sample_centres(key))
    outer_gradient = truncated(learner, inner_steps=3, num_tasks=2)

    def both(state):
        *got, state = outer_gradient.gradient(None, params, tasks, keys, state)
        expected = reverse_mode().gradient(learner.loss, params, tasks, keys, ())
        return got[:2], expected[:2], state

    state, run = outer_gradient.init(key, params, sample_centres(key)), jax.jit(both)
    for _ in range(2):
        (gradient, loss), expected, state = run(state)
        chex.assert_trees_all_close((gradient, loss), expected, rtol=1e-4, atol=1e-6)


SEGMENTED = {
    "maml": quadratic_maml,
    "maml, head only, learned": lambda: metajax.learners.maml(
        metajax.models.mlp(3, hidden_sizes=(4,), normalization="support"),
        learned(
            optax.sgd,
            learning_rate=HyperParameter(0.1, per="leaf", inner_steps=3),
            momentum=HyperParameter(0.9),
        ),
        inner_steps=STEPS,
        adapts=metajax.filters.only("head"),
    ),
    "path": lambda: quadratic_rate("path"),
    "query, adam": lambda: metajax.learners.optimizer_learner(
        constant_model(START),
        learned(optax.adam, learning_rate=HyperParameter(0.1), eps_root=1e-8),
        inner_steps=STEPS,
        judges="query",
        objective=squared_error,
    ),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_mean_loss_of_the_pieces_is_the_loss(name, key):
    learner = SEGMENTED[name]()
    task = sample(key) if "head" in name else constant_task()
    segments = learner.segments
    assert segments.inner_steps == STEPS

    @jax.jit
    def pieces(meta_params):
        means = []
        for steps in (1, 2):
            state, losses = segments.start(meta_params, task, None), []
            for _ in range(STEPS // steps):
                state, loss = segments.advance(meta_params, task, state, None, steps)
                losses.append(loss)
            means.append(sum(losses) / len(losses))
        return jnp.stack(means), learner.loss(meta_params, task)[0]

    means, loss = pieces(learner.init(key, task))
    np.testing.assert_allclose(means, np.full(2, loss), rtol=1e-5)


def test_pieces_of_a_learned_start_are_warned_of():
    """Of which `truncated` learns nothing."""
    with pytest.warns(UserWarning, match="4 inner steps start, and pieces of 2 give"):
        truncated(MAML, inner_steps=2, num_tasks=1)
    truncated(MAML, inner_steps=4, num_tasks=1)
    truncated(quadratic_rate("query"), inner_steps=2, num_tasks=1)
    pes(MAML, inner_steps=2, num_tasks=1)


@pytest.mark.filterwarnings("ignore:This learner learns where")
@pytest.mark.parametrize("make", [truncated, pes])
def test_tasks_stay_until_their_loop_ends_and_loops_are_staggered(make, key):
    learner = quadratic_maml()
    outer_gradient = make(learner, inner_steps=1, num_tasks=6)
    task = constant_task()
    params = learner.init(key, task)
    step = jax.jit(outer_gradient.gradient, static_argnums=0)
    state, path, starts = outer_gradient.init(key, params, task), [], []
    for i in range(10):
        # Tasks that say in which step they were drawn.
        tasks = jax.tree.map(lambda leaf, i=i: jnp.full((6, *leaf.shape), i), task)
        tasks = jax.tree.map(lambda leaf: leaf.astype(float), tasks)
        starts.append(np.array(state.is_new))
        *_, state = step(None, params, tasks, jax.random.split(key, 6), state)
        path.append(np.array(state.tasks.support.y[:, 0, 0]))
    # First loops end after 4, 3, 2 and 1 steps, all others after 4.
    for place, first in enumerate([4, 3, 2, 1, 4, 3]):
        begins = [0, first, first + 4, first + 8]
        expected = [max(b for b in begins if b <= i) for i in range(10)]
        np.testing.assert_array_equal(np.array(path)[:, place], expected)
        np.testing.assert_array_equal(
            np.array(starts)[:, place], np.isin(np.arange(10), begins)
        )


ESTIMATORS = {
    "evolution_strategies": lambda learner: evolution_strategies(sigma=0.05),
    "truncated": lambda learner: truncated(learner, inner_steps=2, num_tasks=4),
    "pes": lambda learner: pes(learner, inner_steps=2, num_tasks=4, sigma=0.05),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_training_resumes_to_the_same_bits(name, tmp_path):
    """And learns: a rate of 1 solves these tasks in one step."""
    learner = quadratic_rate("path", constant_model((1.0, -1.0, 0.5)))

    def run(steps, run_dir=None):
        return train(
            learner,
            sample_centres,
            optax.adam(0.05),
            steps=steps,
            tasks_per_step=4,
            mesh=None,
            outer_gradient=ESTIMATORS[name](learner),
            run_dir=run_dir,
            progress=False,
        )

    whole = run(7)
    run(3, tmp_path)  # in the middle of loops
    resumed = run(7, tmp_path)
    assert same_bits(resumed.state, whole.state)
    assert whole.meta_params.optimizer["learning_rate"] > RATE + 0.05
    assert np.isfinite([record["loss"] for record in whole.history]).all()


MAML = quadratic_maml()
ERRORS = {
    "sigma": (
        lambda: evolution_strategies(sigma=0.0),
        "`sigma` must be above 0 and finite, got 0.0",
    ),
    "sigma of pes": (
        lambda: pes(MAML, inner_steps=1, num_tasks=1, sigma=float("nan")),
        "`sigma` must be above 0 and finite, got nan",
    ),
    "num_pairs": (
        lambda: evolution_strategies(num_pairs=0),
        "`num_pairs` must be an integer of at least 1, got 0",
    ),
    "no segments": (
        lambda: truncated(quadratic(), inner_steps=1, num_tasks=1),
        "the learner has no `segments`; use evolution_strategies",
    ),
    "steps": (
        lambda: truncated(MAML, inner_steps=0, num_tasks=1),
        "`inner_steps` must be an integer of at least 1, got 0",
    ),
    "steps is a bool": (
        lambda: pes(MAML, inner_steps=True, num_tasks=1),
        "`inner_steps` must be an integer of at least 1, got True",
    ),
    "longer than the loop": (
        lambda: truncated(MAML, inner_steps=5, num_tasks=1),
        "`inner_steps` must be at most 4, .* got 5: a piece cannot be longer than",
    ),
    "no divisor": (
        lambda: pes(MAML, inner_steps=3, num_tasks=1),
        r"`inner_steps` must divide the 4 of .* got 3; it can be one of \[1, 2, 4\]",
    ),
    "num_tasks": (
        lambda: pes(MAML, inner_steps=1, num_tasks=0),
        "`num_tasks` must be an integer of at least 1, got 0",
    ),
    "another number of tasks": (
        lambda: train(
            MAML,
            lambda key: constant_task(),
            optax.sgd(0.1),
            steps=1,
            tasks_per_step=3,
            outer_gradient=pes(MAML, inner_steps=1, num_tasks=2),
            progress=False,
        ),
        "was made for 2 tasks a step and got 3; .* `tasks_per_step` .*mesh=None",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_is_no_learner():
    with pytest.raises(TypeError, match="`learner` must be a metajax Learner, got Mod"):
        truncated(metajax.models.mlp(2), inner_steps=1, num_tasks=1)

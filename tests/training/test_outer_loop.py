import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import INNER_LR, quadratic, same_bits, sample

from metajax.compute.devices import TASK_AXIS, place, task_mesh
from metajax.training.outer_loop import (
    TrainState,
    init_state,
    outer_step,
    reverse_mode,
    run_steps_fn,
    sample_tasks,
    select_tasks,
    task_keys,
)

NUM_TASKS = 4
OPTIMIZER = optax.adam(0.1)
TASKS = jax.tree_util.Partial(sample)


def new_state(key, learner=None, optimizer=OPTIMIZER, outer_gradient=None):
    outer_gradient = outer_gradient or reverse_mode()
    return init_state(
        key, learner or quadratic(), sample(key), optimizer, outer_gradient
    )


def batch(key):
    sample_keys, loss_keys = task_keys(key, 0, NUM_TASKS)
    return jax.vmap(sample)(sample_keys), loss_keys


def run(key, num_steps, *, steps_per_dispatch, learner=None, optimizer=OPTIMIZER):
    """Takes steps in dispatches as long as possible; metrics `[num_steps]`."""
    learner = learner or quadratic(noise=0.1)
    program = run_steps_fn(
        learner,
        optimizer,
        reverse_mode(),
        sample_tasks,
        tasks_per_step=NUM_TASKS,
        steps_per_dispatch=steps_per_dispatch,
    )
    state, rows = new_state(key, learner, optimizer), []
    for start in range(0, num_steps, steps_per_dispatch):
        count = min(steps_per_dispatch, num_steps - start)
        state, metrics = program(state, TASKS, key, start, count)
        rows.append(jax.tree.map(lambda x, n=count: x[:n], metrics))
    assert program._cache_size() == 1
    return state, jax.tree.map(lambda *x: np.concatenate(x), *rows)


def test_task_keys_are_a_function_of_step_and_all_different(key):
    keys = [jax.random.key_data(task_keys(key, step, NUM_TASKS)) for step in range(3)]
    assert same_bits(keys[1], jax.random.key_data(task_keys(key, 1, NUM_TASKS)))
    rows = np.concatenate(keys).reshape(-1, 2)
    assert len(np.unique(rows, axis=0)) == 3 * 2 * NUM_TASKS


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_gradient_matches_closed_form(key, steps):
    state = new_state(key)
    tasks, keys = batch(key)
    gradient, loss, metrics, _ = reverse_mode().gradient(
        quadratic(steps=steps).loss, state.meta_params, tasks, keys, ()
    )
    shrink = (1 - INNER_LR) ** steps
    s, q = np.array(tasks.support.y[:, 0]), np.array(tasks.query.y[:, 0])
    phi = s + shrink * (np.array(state.meta_params["theta"])[None] - s)
    np.testing.assert_allclose(
        gradient["theta"], np.mean(shrink * (phi - q), axis=0), rtol=1e-5, atol=1e-6
    )
    losses = 0.5 * np.sum((phi - q) ** 2, axis=1)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["distance"], np.mean(np.sqrt(2 * losses)), rtol=1e-5
    )


@pytest.mark.parametrize("tasks_per_block", [1, 2, 4])
def test_blocks_agree_with_a_loop_over_tasks(key, tasks_per_block):
    learner, state = quadratic(noise=0.1), new_state(key)
    tasks, keys = batch(key)

    def task_loss(meta_params, i):
        task = jax.tree.map(lambda x: x[i], tasks)
        return learner.loss(meta_params, task, key=keys[i])

    single = [
        jax.value_and_grad(task_loss, has_aux=True)(state.meta_params, i)
        for i in range(NUM_TASKS)
    ]
    (loss, metrics), gradient = jax.tree.map(
        lambda *x: np.mean(np.stack(x), axis=0), *single
    )
    outer_gradient = reverse_mode(tasks_per_block=tasks_per_block)
    got = jax.jit(outer_gradient.gradient, static_argnums=0)(
        learner.loss, state.meta_params, tasks, keys, ()
    )
    chex.assert_trees_all_close(got, (gradient, loss, metrics, ()), rtol=1e-5)


def test_block_of_one_is_not_vmapped(key):
    def loss(meta_params, task, *, key):
        # Under vmap a branch on data would become a select.
        square = lambda: jnp.sum(meta_params["theta"] ** 2)  # noqa: E731
        value = jax.lax.cond(task.query.y[0, 0] > 0, square, lambda: 0.0)
        return value, {"is_positive": task.query.y[0, 0] > 0}

    tasks, keys = batch(key)
    params = new_state(key).meta_params

    def primitives(tasks_per_block):
        outer_gradient = reverse_mode(tasks_per_block=tasks_per_block)
        return str(
            jax.make_jaxpr(lambda p: outer_gradient.gradient(loss, p, tasks, keys, ()))(
                params
            )
        )

    assert " cond[" in primitives(1)
    assert " cond[" not in primitives(2)
    *_, metrics, _ = reverse_mode(tasks_per_block=1).gradient(
        loss, params, tasks, keys, ()
    )
    expected = np.mean(np.array(tasks.query.y[:, 0, 0]) > 0)
    assert metrics["is_positive"] == expected


def test_block_must_divide_tasks(key):
    tasks, keys = batch(key)
    with pytest.raises(ValueError, match="got blocks of 3 for 4 tasks"):
        reverse_mode(tasks_per_block=3).gradient(
            quadratic().loss, new_state(key).meta_params, tasks, keys, ()
        )


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_program_agrees_with_plain_loop(key, steps_per_dispatch):
    learner = quadratic(noise=0.1)
    state, losses = new_state(key), []
    for step in range(5):
        sample_keys, loss_keys = task_keys(key, step, NUM_TASKS)
        state, metrics = outer_step(
            learner,
            OPTIMIZER,
            reverse_mode(),
            state,
            jax.vmap(sample)(sample_keys),
            loss_keys,
        )
        losses.append(metrics["loss"])
    got, metrics = run(key, 5, steps_per_dispatch=steps_per_dispatch)
    chex.assert_trees_all_close(got, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert got.step == 5


def test_dispatch_length_changes_no_bits(key):
    reference = run(key, 7, steps_per_dispatch=7)
    for steps_per_dispatch in (3, 10):
        assert same_bits(reference, run(key, 7, steps_per_dispatch=steps_per_dispatch))


def test_batches_from_the_host_give_the_same_steps(key):
    program = run_steps_fn(
        quadratic(noise=0.1),
        OPTIMIZER,
        reverse_mode(),
        select_tasks,
        tasks_per_step=NUM_TASKS,
        steps_per_dispatch=3,
    )
    draw = lambda step: jax.vmap(sample)(task_keys(key, step, NUM_TASKS)[0])  # noqa: E731
    source = jax.tree.map(lambda *x: jnp.stack(x), *map(draw, range(3)))
    state, _ = program(new_state(key), source, key, 0, 3)
    expected, _ = run(key, 3, steps_per_dispatch=3)
    chex.assert_trees_all_close(state, expected, rtol=1e-6)


def nan_at(step):
    return optax.sgd(lambda count: jnp.where(count == step, jnp.nan, 0.1))


@pytest.mark.parametrize("steps_per_dispatch", [1, 4])
def test_non_finite_step_leaves_last_good_state(key, steps_per_dispatch):
    state, metrics = run(
        key, 8, steps_per_dispatch=steps_per_dispatch, optimizer=nan_at(2)
    )
    good, _ = run(key, 2, steps_per_dispatch=steps_per_dispatch, optimizer=nan_at(99))
    assert state.step == 2
    assert same_bits(state, good)
    np.testing.assert_array_equal(metrics["is_finite"], np.arange(8) < 2)


def test_a_later_dispatch_does_not_go_on_after_a_stop(key):
    """Batches from the host would pair its steps with tasks of other steps."""
    for steps_per_dispatch in (1, 3):
        program = run_steps_fn(
            quadratic(),
            OPTIMIZER,
            reverse_mode(),
            sample_tasks,
            tasks_per_step=NUM_TASKS,
            steps_per_dispatch=steps_per_dispatch,
        )
        state, _ = program(new_state(key), TASKS, key, 5, 1)
        assert same_bits(state, new_state(key))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite(key, bad):
    def loss(meta_params, task, *, key):
        theta = meta_params["theta"]
        zero = jnp.sum(theta - jax.lax.stop_gradient(theta))
        # The root of 0 has an infinite derivative.
        return jnp.sqrt(zero) if bad == "gradient" else zero + jnp.inf, {}

    tasks, keys = batch(key)
    # Of an infinite gradient, signs make a finite update.
    optimizer = optax.sign_sgd(0.1)
    state = new_state(key, optimizer=optimizer)
    new, metrics = outer_step(
        quadratic()._replace(loss=loss), optimizer, reverse_mode(), state, tasks, keys
    )
    assert not metrics["is_finite"]
    assert bool(jnp.isfinite(metrics["loss"])) == (bad == "gradient")
    assert bool(jnp.isfinite(metrics["gradient_norm"])) == (bad == "loss")
    assert same_bits(new, state)


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_state_is_donated(key, steps_per_dispatch):
    program = run_steps_fn(
        quadratic(),
        OPTIMIZER,
        reverse_mode(),
        sample_tasks,
        tasks_per_step=NUM_TASKS,
        steps_per_dispatch=steps_per_dispatch,
    )
    state = new_state(key)
    program(state, TASKS, key, 0, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_donation_spares_what_the_learner_holds(key):
    """Even where two leaves of the parameters are one array."""
    shared = jnp.ones(3)
    init = lambda key, task: {"theta": shared, "again": shared}  # noqa: E731
    run(key, 2, steps_per_dispatch=1, learner=quadratic()._replace(init=init))
    np.testing.assert_array_equal(shared, np.ones(3))


def test_optimizers_may_ask_for_the_loss(key):
    optimizer = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, atol=1e9)
    )
    state, _ = run(key, 8, steps_per_dispatch=1, optimizer=optimizer)
    assert state.opt_state[1].scale < 1


def test_state_keeps_structure_and_dtypes(key):
    learner = quadratic()._replace(
        init=lambda key, task: {"theta": jnp.zeros(3, jnp.bfloat16)}
    )
    before = new_state(key, learner)
    after, _ = run(key, 3, steps_per_dispatch=3, learner=learner)
    assert isinstance(after, TrainState)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


def scheduled():
    """Its objective pulls theta by the number of outer steps taken."""

    def scheduled_loss(step, meta_params, task, *, key=None):
        chex.assert_type(step, jnp.int32)
        pull = (step + 1) * jnp.sum(meta_params["theta"])
        return pull, {"step": step.astype(float)}

    def loss(meta_params, task, *, key=None):
        raise AssertionError("a learner with `scheduled_loss` is trained by that")

    return quadratic()._replace(loss=loss, scheduled_loss=scheduled_loss)


def test_scheduled_loss_gets_the_outer_step(key):
    optimizer = optax.sgd(1.0)
    state = new_state(key, scheduled(), optimizer)
    tasks, keys = batch(key)
    start = np.array(state.meta_params["theta"])
    for step in range(3):
        state, metrics = outer_step(
            scheduled(), optimizer, reverse_mode(), state, tasks, keys
        )
        assert metrics["step"] == step
    np.testing.assert_allclose(state.meta_params["theta"], start - 6, rtol=1e-5)


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_scheduled_loss_in_the_program(key, steps_per_dispatch, on_mesh):
    """Also where a run goes on from a later step, and with a mesh of one device."""
    mesh = jax.make_mesh((1,), (TASK_AXIS,)) if on_mesh else None
    mesh = task_mesh(mesh, NUM_TASKS)
    assert (mesh is not None) == on_mesh
    learner, optimizer = scheduled(), optax.sgd(1.0)
    program = run_steps_fn(
        learner,
        optimizer,
        reverse_mode(),
        sample_tasks,
        tasks_per_step=NUM_TASKS,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
    )
    state = new_state(key, learner, optimizer)._replace(step=jnp.int32(5))
    start, seen = np.array(state.meta_params["theta"]), []
    state, key = place((state, key), mesh)
    for at in range(5, 11, steps_per_dispatch):
        state, metrics = program(state, TASKS, key, at, steps_per_dispatch)
        seen.extend(metrics["step"])
    assert seen == [5, 6, 7, 8, 9, 10]
    np.testing.assert_allclose(state.meta_params["theta"], start - 51, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_parameters_that_are_not_real_are_named(key, dtype):
    learner = quadratic()
    meta_params = {"theta": jnp.zeros(3), "count": jnp.zeros(2, dtype)}
    tasks, keys = batch(key)
    with pytest.raises(ValueError, match=rf"'count': '{jnp.dtype(dtype)}'"):
        reverse_mode().gradient(learner.loss, meta_params, tasks, keys, ())

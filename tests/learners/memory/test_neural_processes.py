"""Neural processes: formulas by loops, the bound by quadrature, sets, and training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import PADDING, of_points

import metajax
from metajax.distributions import (
    Mixture,
    joint_log_likelihood,
    log_likelihood,
    moments,
)
from metajax.evaluation.bank import evaluate
from metajax.evaluation.reports import compare
from metajax.evaluation.transduction import leakage
from metajax.tasks.functions.gaussian_process import exact_posterior, gaussian_process
from metajax.training.trainer import train
from metajax.types import Examples, Learner, Task

ENTRIES = {
    "conditional_np": of_points(
        lambda: metajax.learners.conditional_np(num_outputs=2, code_size=5)
    ),
    "latent_np": of_points(
        lambda: metajax.learners.latent_np(num_outputs=2, code_size=5, num_samples=3)
    ),
    "attentive_np": of_points(
        lambda: metajax.learners.attentive_np(num_outputs=2, code_size=6, heads=2)
    ),
    "attentive_np, latent, self-attention": of_points(
        lambda: metajax.learners.attentive_np(
            num_outputs=2, code_size=6, heads=3, self_attention=1, latent=True
        )
    )._replace(laws=PADDING),
    "transformer_np": of_points(
        lambda: metajax.learners.transformer_np(
            num_outputs=2,
            token_size=6,
            heads=2,
            hidden_size=5,
            embedding_layers=2,
            layers=2,
        )
    ),
}

NUM, QUERIES, COLUMNS, OUTPUTS = 5, 4, 3, 2
SIZES = {"num_outputs": OUTPUTS, "code_size": 6}
HEADS = SIZES | {"heads": 2}
MAKERS = {
    "conditional": lambda: metajax.learners.conditional_np(**SIZES),
    "latent": lambda: metajax.learners.latent_np(**SIZES, num_samples=3),
    "attentive": lambda: metajax.learners.attentive_np(**HEADS),
    "attentive, self": lambda: metajax.learners.attentive_np(**HEADS, self_attention=1),
    "attentive, latent": lambda: metajax.learners.attentive_np(**HEADS, latent=True),
    "transformer": lambda: metajax.learners.transformer_np(
        num_outputs=OUTPUTS,
        token_size=6,
        heads=2,
        hidden_size=7,
        embedding_layers=1,
        layers=2,
    ),
}
LATENT = ("latent", "attentive, latent")
every = pytest.mark.parametrize("name", MAKERS)


def make_task(seed=0, columns=COLUMNS, outputs=OUTPUTS):
    rng = np.random.default_rng(seed)

    def examples(num):
        x, y = rng.normal(size=(num, columns)), rng.normal(size=(num, outputs))
        return Examples(jnp.float32(x), jnp.float32(y))

    return Task(examples(NUM), examples(QUERIES))


def moved(params, size=0.3):
    """Off their initial values: biases too."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return structure.unflatten(
        [leaf + rng.normal(0, size, leaf.shape).astype(np.float32) for leaf in leaves]
    )


@functools.lru_cache
def built(name):
    learner = MAKERS[name]()
    return learner, moved(learner.init(jax.random.key(0), make_task()))


def answer(name, support, inputs, key=None, mask=None):
    learner, params = built(name)
    adapted = learner.adapt(params, support, key=key)
    return moments(learner.predict(adapted, inputs, mask=mask))


def assert_same(found, expected, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} | tolerance
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


# Formulas.


def layers(params, x):
    x = np.asarray(x, float)
    for place in range(len(params)):
        layer = params[f"Dense_{place}"]
        x = x @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"], float)
        if place < len(params) - 1:
            x = np.maximum(x, 0)
    return x


def decoded(params, x, min_scale=0.1):
    mean, raw = np.split(layers(params["decoder"]["Layers_0"], x), 2, axis=1)
    return mean, min_scale + (1 - min_scale) * np.log1p(np.exp(raw))


def test_conditional_is_the_formula():
    support, query = make_task()
    params = built("conditional")[1]["params"]
    pairs = [np.concatenate(pair) for pair in zip(support.x, support.y, strict=True)]
    r = np.mean([layers(params["phi"], pair) for pair in pairs], axis=0)
    rows = np.stack([np.concatenate([x, r]) for x in query.x])
    assert_same(answer("conditional", support, query.x), decoded(params, rows))


def test_latent_is_the_formula():
    """Without a key, z is the mean of q; with one, samples of it."""
    support, query = make_task()
    learner, params = built("latent")
    q = params["params"]["posterior"]
    pairs = np.concatenate([support.x, support.y], axis=1)
    s = layers(params["params"]["phi"], pairs).mean(axis=0)
    hidden = np.maximum(layers(q["Layers_0"], s), 0)
    z = layers({"Dense_0": q["mean"]}, hidden)
    scale = 0.1 + 0.9 / (1 + np.exp(-layers({"Dense_0": q["scale"]}, hidden)))
    rows = np.concatenate([query.x, np.tile(z, (QUERIES, 1))], axis=1)
    expected = decoded(params["params"], rows)
    assert_same(answer("latent", support, query.x), expected)

    many = metajax.learners.latent_np(**SIZES, num_samples=20_000)
    drawn = many.adapt(params, support, key=jax.random.key(1)).latents
    error = 5 / np.sqrt(len(drawn))
    np.testing.assert_allclose(drawn.mean(axis=0), z, atol=error)
    np.testing.assert_allclose(drawn.std(axis=0), scale, atol=error)


def test_attentive_reads_values_at_keys():
    """With one context point there is one value to read, whatever the query."""
    support, query = make_task()
    params = built("attentive")[1]["params"]
    one = jax.tree.map(lambda leaf: leaf[:1], support)
    value = layers(params["phi"]["Layers_0"], np.concatenate([one.x, one.y], axis=1))
    out = params["attention"]
    r = value @ np.asarray(out["value"]["kernel"]) @ np.asarray(out["out"]["kernel"])
    rows = np.concatenate([query.x, np.tile(r, (QUERIES, 1))], axis=1)
    assert_same(answer("attentive", one, query.x), decoded(params, rows))


def test_transformer_is_one_masked_sequence():
    """Context and targets in one sequence, under the mask of the official code."""
    support, query = make_task()
    params = built("transformer")[1]["params"]

    def norm(p, x):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * np.asarray(p["scale"]) + np.asarray(p["bias"])

    def block(p, x, is_read):
        w = {name: np.asarray(k["kernel"], float) for name, k in p["attention"].items()}
        seen = norm(p["norm_attention"], x)
        q, k, v = (
            np.split(seen @ w[name], 2, axis=1) for name in ("query", "key", "value")
        )
        heads = []
        for head in range(2):
            scores = q[head] @ k[head].T / np.sqrt(q[head].shape[1])
            weights = np.exp(scores) * is_read
            heads.append(weights / weights.sum(1, keepdims=True) @ v[head])
        x = x + np.concatenate(heads, axis=1) @ w["out"]
        return x + layers(p["network"], norm(p["norm_network"], x))

    blank = np.zeros((QUERIES, OUTPUTS))
    pairs = [np.concatenate(p, 1) for p in (support[:2], (query.x, blank))]
    tokens = layers(params["embedding"], np.concatenate(pairs))
    tokens = np.concatenate([params["start"], tokens])
    is_read = np.arange(len(tokens))[None] < 1 + NUM
    for place in range(2):
        tokens = block(params[f"blocks_{place}"], tokens, is_read)
    last = norm(params["norm"], tokens[1 + NUM :])
    assert_same(answer("transformer", support, query.x), decoded(params, last))


# Sets.


@every
def test_empty_contexts_are_all_the_same_and_finite(name):
    """Hidden rows of any number and content, or no rows at all."""
    support, query = make_task()

    def hidden(num, garbage):
        x, y = jnp.full((num, COLUMNS), garbage), jnp.full((num, OUTPUTS), garbage)
        return Examples(x, y, jnp.zeros(num, bool))

    key = jax.random.key(3)
    expected = answer(name, hidden(2, 0.0), query.x, key)
    assert all(np.all(np.isfinite(leaf)) for leaf in expected)
    for other in (hidden(4, np.nan), hidden(0, 0.0)._replace(mask=None)):
        assert_same(answer(name, other, query.x, key), expected)
    real = answer(name, support, query.x, key)
    assert np.abs(real.mean - expected.mean).max() > 1e-2


@every
def test_gradients_are_finite_with_an_empty_context(name):
    learner, params = built(name)
    support, query = make_task()
    hidden = Task(support._replace(mask=jnp.zeros(NUM, bool)), query)
    loss = functools.partial(learner.loss, key=jax.random.key(0))
    gradient = jax.grad(lambda params: loss(params, hidden)[0])(params)
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert max(np.abs(leaf).max() for leaf in leaves) > 1e-3


@every
def test_every_parameter_is_trained(name):
    learner, params = built(name)
    tasks = [make_task(seed) for seed in range(4)]

    def loss(params):
        key = jax.random.key(0)
        return sum(learner.loss(params, task, key=key)[0] for task in tasks)

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # Softmax does not see what is added to all its scores, as the last bias of k
        # to keys; no other parameter is without effect.
        assert np.abs(leaf).max() > 1e-6, path


@every
@pytest.mark.parametrize("with_key", [False, True])
def test_targets_do_not_see_each_other(name, with_key):
    """By derivatives, exactly; and by other queries, with rounding."""
    learner, params = built(name)
    task = make_task()
    key = jax.random.key(5) if with_key else None
    adapted = learner.adapt(params, task.support, key=key)

    def means(x):
        return moments(learner.predict(adapted, x)).mean

    jacobian = np.asarray(jax.jacrev(means)(task.query.x))
    is_other = ~np.eye(QUERIES, dtype=bool)
    assert np.all(jacobian.transpose(0, 2, 1, 3)[is_other] == 0)
    assert np.abs(jacobian).max() > 1e-2
    assert leakage(learner, params, task, key).is_inductive


@every
def test_targets_see_the_whole_context(name):
    _, query = make_task()

    def means(support):
        return answer(name, support, query.x).mean

    for leaf in jax.tree.leaves(jax.jacrev(means)(make_task().support)):
        of_points = np.abs(leaf).max(axis=(0, 1, 3))
        assert np.all(of_points > 1e-6), of_points


@every
def test_scales_have_a_lower_bound(name):
    learner, params = built(name)
    support, query = make_task()
    decoder = params["params"]["decoder"]["Layers_0"]
    last = f"Dense_{len(decoder) - 1}"
    for raw, expected in ((-1e4, 0.1), (1e4, 0.1 + 0.9 * 1e4)):
        bias = decoder[last]["bias"].at[OUTPUTS:].set(raw)
        other = decoder | {last: decoder[last] | {"bias": bias}}
        other = {"params": params["params"] | {"decoder": {"Layers_0": other}}}
        outputs = learner.predict(learner.adapt(other, support), query.x)
        scale = jax.tree.leaves(outputs)[1]
        np.testing.assert_allclose(scale, np.full_like(scale, expected), rtol=1e-2)


@every
def test_inputs_of_any_shape_are_flattened(name):
    learner, params = built(name)
    support, query = make_task()
    deep = support._replace(x=support.x[:, None, :, None])
    found = learner.predict(learner.adapt(params, deep), query.x[:, None, :, None])
    expected = learner.predict(learner.adapt(params, support), query.x)
    assert_same(jax.tree.leaves(found), jax.tree.leaves(expected))


# The latent.


@pytest.mark.parametrize("name", LATENT)
def test_samples_are_drawn_in_adapt(name):
    learner, params = built(name)
    support, query = make_task()

    def drawn(key):
        return learner.predict(learner.adapt(params, support, key=key), query.x)

    first, other = drawn(jax.random.key(0)), drawn(jax.random.key(1))
    assert isinstance(first, Mixture)
    num = 3 if name == "latent" else 32
    assert first.components.mean.shape == (QUERIES, num, OUTPUTS)
    assert drawn(None).components.mean.shape == (QUERIES, 1, OUTPUTS)
    assert_same(first.components, drawn(jax.random.key(0)).components, rtol=0, atol=0)
    assert np.abs(first.components.mean - other.components.mean).max() > 1e-2
    components = np.asarray(first.components.mean)
    assert np.abs(components[:, :1] - components[:, 1:]).max() > 1e-2


@functools.lru_cache
def one_latent(**samples):
    """A latent of one number, y ~ N(x + z - 6, 0.72^2): by quadrature all is exact."""
    learner = metajax.learners.latent_np(
        num_outputs=1, code_size=1, encoder_layers=1, decoder_layers=1, **samples
    )
    task = make_task(3, columns=1, outputs=1)
    shapes = jax.eval_shape(learner.init, jax.random.key(0), task)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    # Nothing is cut off by a ReLU.
    q = params["params"]["posterior"]
    q["Layers_0"]["Dense_0"]["bias"] += 3.0
    # So that q(z | S) and q(z | S u T) are not alike.
    q["scale"] = {"kernel": jnp.asarray([[10.0]]), "bias": jnp.asarray([-46.5])}
    first, last = params["params"]["decoder"]["Layers_0"].values()
    first["bias"] += 19.0
    last |= {"kernel": jnp.asarray([[1.0, 0.0]]), "bias": jnp.asarray([-26.0, 0.0])}
    params["params"]["decoder"]["Layers_0"] = {"Dense_0": first, "Dense_1": last}
    return learner, params, task


def quadrature(params, task):
    """z on a grid, its spacing, log q(z | S), log q(z | S u T), log p(y_T | x_T, z)."""
    params = params["params"]
    z = np.linspace(-15, 25, 80_001)

    def log_q(examples):
        pairs = np.concatenate([examples.x, examples.y], axis=1)
        hidden = np.maximum(layers(params["phi"], pairs).mean() + 4.0, 0)
        mean, scale = hidden + 1.0, 0.1 + 0.9 / (1 + np.exp(46.5 - 10 * hidden))
        return -(((z - mean) / scale) ** 2) / 2 - np.log(scale * np.sqrt(2 * np.pi))

    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *task)
    each = np.zeros((QUERIES, len(z)))
    for i, (x, y) in enumerate(zip(*task.query[:2], strict=True)):
        rows = np.stack([np.full_like(z, x[0]), z], axis=1)
        mean, scale = decoded(params, rows)
        standard = (y[0] - mean[:, 0]) / scale[:, 0]
        each[i] = -(standard**2) / 2 - np.log(scale[:, 0] * np.sqrt(2 * np.pi))
    return z[1] - z[0], log_q(task.support), log_q(both), each


def test_the_bound_is_below_the_evidence_by_the_error_of_q():
    """log p(y_T | x_T, S) - bound = KL(q(z | S u T) || p(z | S, T)), by quadrature."""
    learner, params, task = one_latent(train_samples=20_000)
    step, log_prior, log_q, each = quadrature(params, task)
    joint = log_prior + each.sum(axis=0)
    evidence = np.log(np.sum(np.exp(joint)) * step)
    error_of_q = np.sum(np.exp(log_q) * (log_q - (joint - evidence))) * step
    assert error_of_q > 0.2
    reconstruction = np.sum(np.exp(log_q) * each.sum(axis=0)) * step
    kl = np.sum(np.exp(log_q) * (log_q - log_prior)) * step
    np.testing.assert_allclose(reconstruction - kl, evidence - error_of_q, atol=1e-6)

    loss, metrics = learner.loss(params, task, key=jax.random.key(0))
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-3, atol=1e-5)
    variance = np.sum(np.exp(log_q) * each.sum(axis=0) ** 2) * step - reconstruction**2
    error = 5 * np.sqrt(variance / 20_000)
    assert error < error_of_q / 4
    found = -QUERIES * loss
    np.testing.assert_allclose(found, evidence - error_of_q, atol=error)
    assert found < evidence


def test_predictive_likelihood_is_the_integral_over_z():
    learner, params, (support, query) = one_latent(num_samples=20_000)
    step, log_prior, _, each = quadrature(params, Task(support, query))
    adapted = learner.adapt(params, support, key=jax.random.key(0))
    outputs = learner.predict(adapted, query.x)
    densities = np.exp(each)
    for function, axis in ((log_likelihood, ()), (joint_log_likelihood, 0)):
        of_z = densities if axis == () else densities.prod(axis=0)
        weights = np.exp(log_prior) * step
        expected = np.sum(weights * of_z, axis=-1)
        variance = np.sum(weights * of_z**2, axis=-1) - expected**2
        errors = 5 * np.sqrt(variance / 20_000) / expected
        difference = np.abs(function(outputs, query.y) - np.log(expected))
        assert np.all(difference < errors + 1e-4)
        assert np.all(errors < 0.2)


@pytest.mark.parametrize("name", LATENT)
def test_hidden_queries_do_not_change_the_bound(name):
    """Which `q(z | S u T)` sees, unlike those of other learners."""
    learner, params = built(name)
    support, query = make_task()
    x, y = (jnp.pad(a, ((0, 3), (0, 0)), constant_values=1e3) for a in query[:2])
    padded = Examples(x, y, jnp.arange(len(x)) < QUERIES)
    key = jax.random.key(0)
    loss, metrics = learner.loss(params, Task(support, padded), key=key)
    expected, of_expected = learner.loss(params, Task(support, query), key=key)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], of_expected["kl"], rtol=1e-4)
    assert metrics["kl"] > 1e-3


@pytest.mark.parametrize("name", LATENT)
def test_only_the_latent_of_the_bound_knows_query_targets(name):
    """At the mean of q(z | S u T), with the context of S alone."""
    learner, params = built(name)
    support, query = make_task()
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)
    adapted = learner.adapt(params, support)
    latents = learner.adapt(params, both).latents
    outputs = learner.predict(adapted._replace(latents=latents), query.x)
    _, metrics = learner.loss(params, Task(support, query))
    expected = log_likelihood(outputs, query.y).mean()
    np.testing.assert_allclose(metrics["reconstruction"], expected, rtol=1e-4)


# Training.


TASKS = gaussian_process(shot=(1, 8), num_queries=10)
SMALL = {"code_size": 16, "min_scale": 0.05}
TRAINED = {
    "conditional": lambda: metajax.learners.conditional_np(**SMALL),
    "latent": lambda: metajax.learners.latent_np(**SMALL),
    "attentive": lambda: metajax.learners.attentive_np(**SMALL, heads=2),
    "transformer": lambda: metajax.learners.transformer_np(
        min_scale=0.05,
        token_size=16,
        heads=2,
        hidden_size=16,
        embedding_layers=2,
        layers=2,
    ),
}


def referee(*, sees_support):
    """The exact posterior as a learner, or the prior."""

    def adapt(meta_params, support, *, key=None):
        del meta_params, key
        hidden = support._replace(mask=jnp.zeros(len(support.x), bool))
        return support if sees_support else hidden

    def predict(support, x, *, mask=None, key=None):
        del key
        query = Examples(x, jnp.zeros((len(x), 1)), mask)
        return exact_posterior(TASKS, support, query).marginals

    def loss(meta_params, task, *, key=None):
        raise AssertionError("it is not trained")

    return Learner(lambda key, task: (), adapt, predict, loss)


@pytest.mark.parametrize("name", TRAINED)
def test_training_leaves_the_prior_for_the_posterior(name):
    """Better than what ignores the context, and not better than what is exact."""
    learner = TRAINED[name]()
    result = train(
        learner,
        TASKS,
        optax.adam(1e-2),
        steps=200,
        tasks_per_step=16,
        steps_per_dispatch=100,
        progress=False,
    )
    report, posterior, prior = (
        evaluate(learner, params, TASKS, num_tasks=300)
        for learner, params in (
            (learner, result.meta_params),
            (referee(sees_support=True), ()),
            (referee(sees_support=False), ()),
        )
    )
    for better, worse in ((report, prior), (posterior, report)):
        found = compare(worse, better, "nll")
        assert found.difference > 2 * found.half_width > 0
    assert report.protocol == "inductive"


# Errors.


POSITIVE = ("num_outputs", "code_size", "encoder_layers", "decoder_layers")
ERRORS = {
    "conditional": (metajax.learners.conditional_np, POSITIVE),
    "latent": (metajax.learners.latent_np, (*POSITIVE, "num_samples", "train_samples")),
    "attentive": (metajax.learners.attentive_np, (*POSITIVE, "heads", "key_layers")),
    "transformer": (
        metajax.learners.transformer_np,
        (
            "num_outputs",
            "token_size",
            "heads",
            "hidden_size",
            "embedding_layers",
            "layers",
        ),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_numbers(name):
    make, counts = ERRORS[name]
    for count in counts:
        for value in (0, 1.5):
            message = f"`{count}` must be an integer of at least 1, got {value}"
            with pytest.raises(ValueError, match=message):
                make(**{count: value})
    for value in (0, 1, -0.1):
        message = f"`min_scale` must be above 0 and below 1, got {value}"
        with pytest.raises(ValueError, match=message):
            make(min_scale=value)


def test_bad_numbers_of_attention():
    with pytest.raises(ValueError, match="`code_size` must be a multiple of `heads`"):
        metajax.learners.attentive_np(code_size=10, heads=4)
    with pytest.raises(ValueError, match="`token_size` must be a multiple of `heads`"):
        metajax.learners.transformer_np(token_size=10, heads=4)
    with pytest.raises(ValueError, match="`self_attention` must be .* at least 0"):
        metajax.learners.attentive_np(self_attention=-1)


@every
def test_other_tasks_are_refused(name):
    learner, params = built(name)
    task = make_task()
    key = jax.random.key(0)
    wide = make_task(columns=COLUMNS + 1)
    with pytest.raises(ValueError, match="Inputs have 4 columns, and these parameters"):
        learner.adapt(params, wide.support)
    adapted = learner.adapt(params, task.support)
    with pytest.raises(ValueError, match="Inputs have 4 columns, and these parameters"):
        learner.predict(adapted, wide.query.x)
    with pytest.raises(ValueError, match="inputs have 3 columns and query inputs 4;"):
        learner.init(key, task._replace(query=wide.query))
    labels = task.support._replace(y=jnp.zeros(NUM, jnp.int32))
    with pytest.raises(ValueError, match=r"real numbers \[5, 2\].* got int32 \[5\];"):
        learner.init(key, task._replace(support=labels))
    with pytest.raises(ValueError, match=r"`num_outputs` is 2, got float32 \[5, 3\];"):
        learner.adapt(params, make_task(outputs=3).support)
    nested = task.support._replace(x={"a": task.support.x, "b": task.support.x})
    with pytest.raises(ValueError, match="Inputs must be one array .*PyTreeDef"):
        learner.init(key, task._replace(support=nested))

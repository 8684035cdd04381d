"""LEO: inner steps on a latent code from which the classifier is decoded.

A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero, R. Hadsell,
"Meta-Learning with Latent Embedding Optimization", ICLR 2019,
https://arxiv.org/abs/1807.05960, Algorithm 1; official code
https://github.com/deepmind/leo. On features x of a network that is usually frozen:

    encoder    mu_n, sigma_n = mean over examples k of class n, and all examples m,
               of  relation([x_k E, x_m E]),   z_n ~ N(mu_n, sigma_n^2)
    decoder    m_n, s_n = z_n V,   w_n ~ N(m_n, s_n^2),   logits of x:  x . w_n
    inner      z' <- z' - alpha * grad_z L_support(w(z')),   `inner_steps` times
    then       w' <- w' - eta * grad_w L_support(w'),   `fine_tuning_steps` times
    outer      L_query(w') + kl_weight * KL(N(mu, sigma^2) || N(0, 1))
               + encoder_penalty * |stop_gradient(z') - z|^2
               + orthogonality * |C(V) - I|^2

E is `meta_params.encoder`, V `meta_params.decoder`, C(V) the correlations between its
rows; alpha and eta, `meta_params.rates`, are learned, a rate for each dimension of code
and features. The three penalties are means over their entries, as in the official code.
Samples are drawn by `loss` with a key; `adapt`, and `loss` without one, take the means,
as the official code does in testing. The paper's L2 penalty is left to the outer
optimizer, as weight decay (mask out a frozen embedding), and its dropout to the model.

Differs from the official code: spreads are the softplus of what the network gives, with
1 at 0, those of the weights times Glorot's sqrt(2 / (features + N)); there they are exp
of it, less 1 and for the weights plus Glorot's, and at least 1e-10, which overflows
where features are not small. The KL is exact, not estimated from the sample. No number
of the paper is checked: they are on the features of a certain wide residual network.

Not to be confused with CAVIA, whose context is one for all classes and starts from 0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import (
    Run,
    check_descent,
    learner_of_run,
    score,
    support_curve,
)
from metajax.builders.heads import check_vectors
from metajax.builders.prototypes import class_means
from metajax.checks import (
    check_flags,
    check_integers,
    check_not_negative,
    check_parts,
    check_positive,
    check_way,
)
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.unroll import GradientMode, Unrolled, unroll
from metajax.masks import masked_mean
from metajax.models.adapters import within
from metajax.objectives import cross_entropy, split_key
from metajax.types import (
    Array,
    Embedding,
    Examples,
    Learner,
    Metrics,
    PyTree,
    Task,
    Way,
)

__all__ = ["LEOParams", "encode", "kl_to_standard", "leo", "row_correlation_penalty"]


class LEOParams(NamedTuple):
    """What LEO learns; D features, L latent dimensions.

    Attributes:
      embedding: parameters of the model.
      encoder: E, `[D, L]`.
      relation: three kernels of a ReLU network without biases, from `[2 L]` to `[2 L]`.
      decoder: V, `[L, 2 D]`.
      rates: `{"latent": {"learning_rate": [1, L]}, "weights": {... [1, D]}}`.
    """

    embedding: PyTree
    encoder: Array
    relation: tuple[Array, ...]
    decoder: Array
    rates: dict[str, PyTree]


def leo(
    model: Embedding,
    *,
    way: Way = "support",
    num_latents: int = 64,
    inner_steps: int = 5,
    fine_tuning_steps: int = 5,
    latent_rate: float = 1.0,
    fine_tuning_rate: float = 1e-3,
    kl_weight: float = 1e-3,
    encoder_penalty: float = 1e-9,
    orthogonality: float = 1e-3,
    train_embedding: bool = False,
    gradient: GradientMode = "remat",
) -> Learner:
    """Builds LEO.

    Choose it for few-shot classification on the features of a network that is trained
    already and too large to adapt. Its rates and the weights of its penalties are as
    the official code has them by default; these weights are what to tune.

    Args:
      model: an embedding, inputs `[n, ...]` to features `[n, D]`. To start from a
        trained one, replace `embedding` in what `init` gives.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      num_latents: size of the code of a class, L, at least 1; 64 is the paper's.
      inner_steps: inner steps on the code, at least 0; 5 is the paper's.
      fine_tuning_steps: inner steps on the weights after these, at least 0, likewise.
      latent_rate: alpha at first, above 0.
      fine_tuning_rate: eta at first, above 0.
      kl_weight: beta of the paper, at least 0.
      encoder_penalty: gamma of the paper, at least 0.
      orthogonality: lambda_2 of the paper, at least 0.
      train_embedding: whether the outer loop trains the embedding, or leaves it as it
        is, as the paper does.
      gradient: how the outer gradient passes the inner loops; see
        `metajax.inner.unroll`.

    Returns:
      A learner whose `meta_params` are `LEOParams` and whose `adapted` is
      `{"embedding": ..., "head": {"kernel": [N, D], "is_present": [N]}}`; `predict`
      gives logits `[n, N]`, minus infinity for classes without a support example. Its
      loss reports `support_loss_t` for up to 11 inner steps t, first those on the code,
      and `kl` and `encoder_penalty` without their weights. States of `adapt_steps` are
      first decoded codes, then weights.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> from metajax.learners import leo
      >>> from metajax.models import conv4
      >>> learner = leo(conv4(normalization="layer"), way=5, train_embedding=True)
    """
    check_flags(train_embedding=train_embedding)
    check_parts(model=model)
    check_way(way)
    check_integers(1, num_latents=num_latents)
    check_integers(0, inner_steps=inner_steps, fine_tuning_steps=fine_tuning_steps)
    check_not_negative(kl_weight=kl_weight, encoder_penalty=encoder_penalty)
    check_not_negative(orthogonality=orthogonality)
    check_positive(latent_rate=latent_rate, fine_tuning_rate=fine_tuning_rate)
    optimizers = {
        name: learned(optax.sgd, learning_rate=HyperParameter(rate, per="parameter"))
        for name, rate in (("latent", latent_rate), ("weights", fine_tuning_rate))
    }
    check_descent(
        optimizers["latent"], gradient, inner_steps, None, may_be_learned=True
    )
    classifier = within(model, "embedding", after=_classify)

    def decode(decoder: Array, codes: Array, key: Array | None) -> Array:
        """Decodes weights `[N, D]` from codes `[N, L]`."""
        means, raw = jnp.split(codes @ decoder, 2, axis=-1)
        return _sample(means, math.sqrt(2 / sum(means.shape)) * _spread(raw), key)

    def loss_of_weights(kernel: Array, args: PyTree, key: Array | None) -> Array:
        features, is_present, labels, mask = args
        del key
        logits = _classify({"head": _head(kernel, is_present)}, features)
        return masked_mean(cross_entropy(logits, labels), mask)

    def loss_of_codes(codes: Array, args: PyTree, key: Array | None) -> Array:
        decoder, others = args
        return loss_of_weights(decode(decoder, codes, key), others, None)

    def encoded(
        meta_params: LEOParams, support: Examples, key: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Computes features of the support set, and the distribution of codes."""
        features = model.apply(
            meta_params.embedding, support.x, mask=support.mask, key=key
        )
        if not train_embedding:
            features = jax.lax.stop_gradient(features)
        num_classes = len(support.y) if way == "support" else way
        return features, *encode(meta_params, features, support, num_classes)

    def descend(
        meta_params: LEOParams, support: Examples, key: Array | None, how: Run
    ) -> tuple[Unrolled, dict[str, Array]]:
        """Runs both inner loops as one, and computes the penalties on codes."""
        key_model, key_start, key_steps, key_end = split_key(key, 4)
        embedding, decoder = meta_params.embedding, meta_params.decoder
        features, means, spreads, is_present = encoded(meta_params, support, key_model)
        args = (features, is_present, support.y, support.mask)
        start = _sample(means, spreads, key_start)
        codes = unroll(
            loss_of_codes,
            optimizers["latent"].build(meta_params.rates["latent"]),
            start,
            (decoder, args),
            inner_steps=inner_steps,
            gradient=gradient,
            key=key_steps,
            keep_path=how.keep_path,
        )
        weights = unroll(
            loss_of_weights,
            optimizers["weights"].build(meta_params.rates["weights"]),
            decode(decoder, codes.params, key_end),
            args,
            inner_steps=fine_tuning_steps,
            gradient=gradient,
            keep_path=how.keep_path,
        )

        def adapted(kernel: Array) -> PyTree:
            return {"embedding": embedding, "head": _head(kernel, is_present)}

        path = None
        if how.keep_path:
            decoded = jax.vmap(lambda code: decode(decoder, code, key_end))
            kernels = jnp.concatenate([decoded(codes.path[:-1]), weights.path])
            path = jax.vmap(adapted)(kernels)
        losses = jnp.concatenate([codes.losses, weights.losses])
        moved = jnp.square(jax.lax.stop_gradient(codes.params) - start)
        penalties = {
            "kl": masked_mean(kl_to_standard(means, spreads), is_present),
            "encoder_penalty": masked_mean(jnp.mean(moved, axis=-1), is_present),
        }
        return Unrolled(adapted(weights.params), losses, path, ()), penalties

    def run(
        meta_params: LEOParams, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        del key
        return descend(meta_params, support, None, how)[0]

    def init(key: Array, task: Task) -> LEOParams:
        key_model, key_encoder, key_relation, key_decoder = jax.random.split(key, 4)
        embedding = model.init(key_model, task.support.x)
        features = jax.eval_shape(model.apply, embedding, task.support.x)
        check_vectors(features)
        size = features.shape[1]
        glorot = jax.nn.initializers.glorot_uniform()
        wide = (2 * num_latents, 2 * num_latents)
        # One row for all classes: a rate for each dimension.
        rates = {
            name: optimizers[name].init(key, jnp.zeros((1, width)))
            for name, width in (("latent", num_latents), ("weights", size))
        }
        return LEOParams(
            embedding,
            glorot(key_encoder, (size, num_latents)),
            tuple(glorot(key, wide) for key in jax.random.split(key_relation, 3)),
            glorot(key_decoder, (num_latents, 2 * size)),
            rates,
        )

    def loss(
        meta_params: LEOParams, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        result, penalties = descend(
            meta_params, task.support, key_adapt, Run(inner_steps)
        )
        params = result.params
        if not train_embedding:
            params = params | {"embedding": jax.lax.stop_gradient(params["embedding"])}
        value, metrics = score(classifier, cross_entropy, params, task, key_predict)
        value += kl_weight * penalties["kl"]
        value += encoder_penalty * penalties["encoder_penalty"]
        value += orthogonality * row_correlation_penalty(meta_params.decoder)
        return value, metrics | support_curve(result.losses) | penalties

    learner = learner_of_run(
        classifier,
        init,
        run,
        cross_entropy,
        inner_steps=inner_steps,
        eval_inner_steps=None,
    )
    return learner._replace(loss=loss)


def encode(
    meta_params: LEOParams, features: Array, support: Examples, num_classes: int
) -> tuple[Array, Array, Array]:
    """Gives means and spreads `[N, L]` of the codes, and presence of classes `[N]`."""
    first, *others = meta_params.relation
    codes = features @ meta_params.encoder
    # The first layer on all pairs [x_k, x_m] is a sum of two products for single ones.
    left, right = jnp.split(first, 2)
    pairs = (codes @ left)[:, None, :] + (codes @ right)[None, :, :]
    for kernel in others:
        pairs = jax.nn.relu(pairs) @ kernel
    where = None if support.mask is None else support.mask[None, :, None]
    related = jnp.mean(pairs, axis=1, where=where)
    of_classes, is_present = class_means(related, support, num_classes)
    means, raw = jnp.split(of_classes, 2, axis=-1)
    return means, _spread(raw), is_present


def kl_to_standard(means: Array, spreads: Array) -> Array:
    """Gives KL(N(mean, spread^2) || N(0, 1)) `[N]` of `[N, L]`, in nats a dimension."""
    squares = jnp.square(means) + jnp.square(spreads)
    return jnp.mean(0.5 * (squares - 1) - jnp.log(spreads), axis=-1)


def row_correlation_penalty(matrix: Array) -> Array:
    """Averages squared differences of cosines between rows from the identity matrix."""
    norms = jnp.linalg.norm(matrix, axis=1, keepdims=True)
    rows = matrix / jnp.maximum(norms, 1e-12)
    return jnp.mean(jnp.square(rows @ rows.T - jnp.eye(len(rows))))


def _spread(raw: Array) -> Array:
    """Softplus with 1 at 0; the logarithm of what it gives is finite."""
    return jax.nn.softplus(raw + math.log(math.e - 1)) + 1e-6


def _sample(means: Array, spreads: Array, key: Array | None) -> Array:
    if key is None:
        return means
    return means + spreads * jax.random.normal(key, means.shape, means.dtype)


def _head(kernel: Array, is_present: Array) -> dict[str, Array]:
    return {"kernel": kernel, "is_present": is_present}


def _classify(params: PyTree, features: Array) -> Array:
    """Logits `[n, N]` of features `[n, D]`."""
    head = params["head"]
    logits = features @ head["kernel"].T
    return jnp.where(head["is_present"][None, :], logits, -jnp.inf)

"""Every exported learner on a tiny model and task, for the battery of shared tests.

A learner joins by one entry; `test_battery.py` fails for an exported one without entry.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax import HyperParameter
from metajax.types import Array, Examples, Learner, Model, Task

WAY, SHOT, NUM_QUERIES, SIZE = 3, 2, 3, 4


def sample(key: Array) -> Task:
    """Gaussian blobs: `WAY` classes around centres in `SIZE` dimensions."""
    key_centers, key_noise = jax.random.split(key)
    centers = 2 * jax.random.normal(key_centers, (WAY, 1, SIZE))
    noise = jax.random.normal(key_noise, (WAY, SHOT + NUM_QUERIES, SIZE))
    x = centers + 0.3 * noise
    labels = jnp.arange(WAY)

    def examples(x: Array) -> Examples:
        return Examples(x.reshape(-1, SIZE), jnp.repeat(labels, x.shape[1]))

    return Task(examples(x[:, :SHOT]), examples(x[:, SHOT:]))


def sample_pair(key: Array) -> Task:
    """Two of the above are the tables: a sample of one, and one more of each."""
    first, second = (sample(key) for key in jax.random.split(key))
    queries = jax.tree.map(lambda *leaves: jnp.stack(leaves), first.query, second.query)
    return Task(first.support, Examples(queries, jnp.asarray([1, 0])))


def sample_points(key: Array) -> Task:
    """Points of one function of `SIZE` inputs with two targets."""
    key_x, key_slope = jax.random.split(key)
    x = jax.random.normal(key_x, (WAY * (SHOT + NUM_QUERIES), SIZE))
    y = jnp.sin(x @ jax.random.normal(key_slope, (SIZE, 2)))
    num = WAY * SHOT
    return Task(Examples(x[:num], y[:num]), Examples(x[num:], y[num:]))


class Entry(NamedTuple):
    """A learner under test.

    Attributes:
      make: builds it.
      is_inductive: whether queries are answered independently of one another.
      ignores_order: whether the order of the support set is without effect.
      uses_labels_untrained: whether it makes sense of labels at random parameters.
      sample: draws a task that it is for; `sample`, unless it does not classify inputs.
    """

    make: Callable[[], Learner]
    is_inductive: bool = True
    ignores_order: bool = True
    uses_labels_untrained: bool = True
    sample: Callable[[Array], Task] = sample


def _mlp(num_outputs: int, normalization: str = "none") -> Model:
    return metajax.mlp(num_outputs, hidden=(8,), normalization=normalization)


def _of_points(make: Callable[[], Learner]) -> Entry:
    return Entry(make, uses_labels_untrained=False, sample=sample_points)


REGISTRY = {
    "maml": Entry(lambda: metajax.maml(_mlp(WAY), optax.sgd(0.1), steps=3)),
    "maml, mixed Adam": Entry(
        lambda: metajax.maml(
            _mlp(WAY), optax.adam(0.01, eps_root=1e-8), steps=2, gradient="mixed"
        )
    ),
    "maml, head only, first order": Entry(
        lambda: metajax.maml(
            _mlp(WAY),
            optax.sgd(0.1),
            steps=2,
            gradient="first_order",
            adapts=metajax.only("head"),
        )
    ),
    "maml, learned momentum": Entry(
        lambda: metajax.maml(
            _mlp(WAY),
            metajax.learned(
                optax.sgd,
                learning_rate=HyperParameter(0.1, per="leaf", steps=2),
                momentum=HyperParameter(0.5, domain="unit"),
            ),
            steps=2,
        )
    ),
    "maml, batch statistics": Entry(
        lambda: metajax.maml(_mlp(WAY, "batch"), optax.sgd(0.05), steps=2),
        is_inductive=False,
    ),
    "maml, support statistics": Entry(
        lambda: metajax.maml(_mlp(WAY, "support"), optax.sgd(0.05), steps=2)
    ),
    "prototypical": Entry(lambda: metajax.prototypical(_mlp(5))),
    "bucketed": Entry(
        lambda: metajax.bucketed(metajax.prototypical(_mlp(5), way=4), [(6, 9)])
    ),
    "prototypical, cosine": Entry(
        lambda: metajax.prototypical(_mlp(5), way=4, distance="cosine", scale=10.0)
    ),
    "prototypical, support statistics": Entry(
        lambda: metajax.prototypical(_mlp(5, "support"))
    ),
    "matching": Entry(lambda: metajax.matching(_mlp(5))),
    "matching, full context": Entry(
        lambda: metajax.matching(
            _mlp(5, "support"), way=4, similarity="squared_euclidean", full_context=True
        ),
        ignores_order=False,
    ),
    "relation": Entry(
        lambda: metajax.relation(_mlp(5), way=WAY, features=4),
        uses_labels_untrained=False,
    ),
    "relation, batch statistics": Entry(
        lambda: metajax.relation(_mlp(5), way=4, features=4, normalization="batch"),
        is_inductive=False,
        uses_labels_untrained=False,
    ),
    "feat": Entry(lambda: metajax.feat(_mlp(5))),
    "baseline": Entry(
        lambda: metajax.baseline(_mlp(5), num_classes=WAY, way=WAY, steps=10)
    ),
    "baseline, cosine, fine-tuned": Entry(
        lambda: metajax.baseline(
            _mlp(5, "support"),
            num_classes=WAY,
            head="cosine",
            steps=2,
            fine_tune=True,
        )
    ),
    "baseline, centroid": Entry(
        lambda: metajax.baseline(_mlp(5), num_classes=WAY, head="centroid")
    ),
    "ridge": Entry(lambda: metajax.ridge(_mlp(5), way=WAY)),
    "ridge, more columns than rows": Entry(
        lambda: metajax.ridge(_mlp(15, "support"), learn_strength=False)
    ),
    "logistic": Entry(lambda: metajax.logistic(_mlp(5), way=4)),
    # Steps until what is left of the solver's error is rounding, as logits amplify it.
    "svm": Entry(lambda: metajax.svm(_mlp(8), way=4, learn_penalty=True, steps=2000)),
    "kernel_svm": Entry(lambda: metajax.kernel_svm(way=WAY)),
    "kernel_svm, linear": Entry(
        lambda: metajax.kernel_svm(way=4, kernel="linear", learn=("penalty", "scale"))
    ),
    "arml": Entry(
        lambda: metajax.arml(
            _mlp(WAY, "support"), optax.sgd(0.1), steps=2, way=4, features=5, vertices=2
        )
    ),
    "soft_tree": Entry(lambda: metajax.soft_tree(way=WAY, depth=2, steps=1)),
    "label_propagation": Entry(
        lambda: metajax.label_propagation(_mlp(5), way=4, alpha=0.9), is_inductive=False
    ),
    "graph": Entry(
        lambda: metajax.graph(_mlp(5), way=WAY, features=4, edge_features=4),
        uses_labels_untrained=False,
    ),
    "mann": Entry(
        lambda: metajax.mann(
            metajax.identity(), way=WAY, hidden=8, slots=5, width=4, heads=2
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "lstm_learner": Entry(
        lambda: metajax.lstm_learner(_mlp(5), way=4, hidden=8, trains_on="query"),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "sgdstore": Entry(
        lambda: metajax.sgdstore(
            metajax.identity(), way=WAY, hidden=8, width=4, units=5, writes=2, reads=1
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "in_context": Entry(
        lambda: metajax.in_context(
            metajax.identity(), way=WAY, context=4, size=8, layers=2, heads=2
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "in_context, whole": Entry(
        lambda: metajax.in_context(
            _mlp(5), way=4, context=None, size=8, layers=2, heads=2
        ),
        uses_labels_untrained=False,
    ),
    "snail": Entry(
        lambda: metajax.snail(
            _mlp(5), way=WAY, context=4, filters=3, keys=(3, 4), values=(2, 5)
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "mm_net": Entry(
        lambda: metajax.mm_net(_mlp(5), way=4, slots=6, size=5, hidden=3, rank=2),
        ignores_order=False,
    ),
    "mm_net, a slot for each": Entry(
        lambda: metajax.mm_net(
            _mlp(5), way=WAY, slots=6, size=5, hidden=3, rank=2, near=2.0
        ),
        ignores_order=False,
    ),
    "meta_net": Entry(
        lambda: metajax.meta_net(_mlp(5), way=4, units=6, hidden=5),
        uses_labels_untrained=False,
    ),
    "hypernetwork": Entry(
        lambda: metajax.hypernetwork(_mlp(WAY), way=WAY, size=5, hidden=(6,)),
        uses_labels_untrained=False,
    ),
    "hypernetwork, scales of support statistics": Entry(
        lambda: metajax.hypernetwork(
            _mlp(WAY, "support"),
            way=4,
            size=5,
            hidden=(6,),
            rank=2,
            generates=metajax.only("scale", "bias"),
        ),
        uses_labels_untrained=False,
    ),
    "cnaps": Entry(lambda: metajax.cnaps(_mlp(5, "layer"), way=4, size=4, hidden=(6,))),
    "cnaps, any way, support statistics": Entry(
        lambda: metajax.cnaps(_mlp(5, "support"), size=4, hidden=(6,), rank=2)
    ),
    "class_np": Entry(
        lambda: metajax.class_np(_mlp(5), way=4, size=6, decoder_layers=2),
        uses_labels_untrained=False,
    ),
    "dataset2vec": Entry(
        lambda: metajax.dataset2vec(num_classes=WAY, size=4, units=16, blocks=1),
        uses_labels_untrained=False,
        sample=sample_pair,
    ),
    "cavia": Entry(
        lambda: metajax.cavia(_mlp(WAY), optax.sgd(1.0), steps=2, context_size=3)
    ),
    "cavia, support statistics": Entry(
        lambda: metajax.cavia(_mlp(WAY, "support"), optax.sgd(0.5), context_size=3)
    ),
    "imaml": Entry(
        lambda: metajax.imaml(
            _mlp(WAY), optax.sgd(0.05), steps=20, cg_steps=20, max_residual=1.0
        )
    ),
    "maml_plus_plus": Entry(
        lambda: metajax.maml_plus_plus(
            _mlp(WAY, "layer"), steps=2, multi_step_until=2, first_order_until=1
        )
    ),
    "maml_plus_plus, all off": Entry(
        lambda: metajax.maml_plus_plus(
            _mlp(WAY), steps=2, per_step_rates=False, per_step_normalization=False
        )
    ),
    "meta_curvature": Entry(lambda: metajax.meta_curvature(_mlp(WAY), steps=2)),
    "meta_sgd": Entry(lambda: metajax.meta_sgd(_mlp(WAY), steps=2)),
    "proto_maml": Entry(lambda: metajax.proto_maml(_mlp(5), optax.sgd(0.01), steps=2)),
    "proto_maml, support statistics": Entry(
        lambda: metajax.proto_maml(_mlp(5, "support"), optax.sgd(0.01), steps=2)
    ),
    "reptile": Entry(
        lambda: metajax.reptile(
            _mlp(WAY), optax.adam(0.02, b1=0.0), steps=3, eval_steps=5
        )
    ),
    "reptile, keeps state": Entry(
        lambda: metajax.reptile(
            _mlp(WAY), optax.sgd(0.02, momentum=0.9), steps=3, keeps_state=True
        )
    ),
    "learn_optimizer": Entry(
        lambda: metajax.learn_optimizer(
            _mlp(WAY),
            metajax.learned(
                optax.sgd, learning_rate=HyperParameter(0.1, domain="positive")
            ),
            steps=4,
            judges="query",
        )
    ),
    "learn_optimizer, lstm": Entry(
        lambda: metajax.learn_optimizer(
            _mlp(WAY),
            metajax.lstm_optimizer(hidden=(4,), output_scale=0.01),
            steps=3,
            gradient="first_order",
        )
    ),
    "meta_lstm": Entry(
        lambda: metajax.meta_lstm(_mlp(WAY), steps=3, forget=0.99, hidden=(4,))
    ),
    "lstm_generator": Entry(
        lambda: metajax.lstm_generator(
            _mlp(WAY), optax.sgd(0.1), steps=2, way=WAY, hidden=(5,)
        )
    ),
    "lstm_generator, low rank, support statistics": Entry(
        lambda: metajax.lstm_generator(
            _mlp(WAY, "support"),
            metajax.learned(optax.sgd, learning_rate=HyperParameter(0.05)),
            steps=1,
            way=4,
            hidden=(5,),
            rank=2,
        )
    ),
    "leo": Entry(
        lambda: metajax.leo(_mlp(5), num_latents=3, steps=2, fine_tuning_rate=0.1)
    ),
    "leo, support statistics": Entry(
        lambda: metajax.leo(
            _mlp(5, "support"), way=4, num_latents=3, steps=1, train_embedding=True
        )
    ),
    "conditional_np": _of_points(lambda: metajax.conditional_np(num_outputs=2, size=5)),
    "latent_np": _of_points(
        lambda: metajax.latent_np(num_outputs=2, size=5, num_samples=3)
    ),
    "attentive_np": _of_points(
        lambda: metajax.attentive_np(num_outputs=2, size=6, heads=2)
    ),
    "attentive_np, latent, self-attention": _of_points(
        lambda: metajax.attentive_np(
            num_outputs=2, size=6, heads=3, self_attention=1, latent=True
        )
    ),
    "transformer_np": _of_points(
        lambda: metajax.transformer_np(
            num_outputs=2, size=6, heads=2, hidden=5, embedding_layers=2, layers=2
        )
    ),
}


def pad(examples: Examples, num: int) -> Examples:
    """The same examples followed by `num` rows of nonsense that the mask hides."""

    def append(leaf: Array) -> Array:
        return jnp.concatenate(
            [leaf, jnp.full((num, *leaf.shape[1:]), 1e3, leaf.dtype)]
        )

    x, y = jax.tree.map(append, (examples.x, examples.y))
    if jnp.issubdtype(y.dtype, jnp.integer):  # labels have a range
        y = y.at[len(examples.y) :].set(0)
    return Examples(x, y, jnp.arange(len(y)) < len(examples.y))

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import inner_optimizers
from benchmarks.inner_optimizers import Settings, optimizers, outcomes

SETTINGS = Settings(inner_steps=2)


def wrong(rate):
    """SGD, and a derivative that is half of the right one."""

    def halved(leaf):
        return -rate * (0.5 * leaf + jax.lax.stop_gradient(0.5 * leaf))

    return optax.stateless(lambda updates, params: jax.tree.map(halved, updates))


def infinite(rate):
    """SGD, and a derivative that is infinite."""

    def of_leaf(leaf):
        return -rate * leaf + jnp.sqrt(0 * leaf)

    return optax.stateless(lambda updates, params: jax.tree.map(of_leaf, updates))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_optimizers_of_optax_are_made():
    made = {name: make() for name, make in optimizers()}
    assert len(made) > 130
    assert {"optax.adam(eps_root=1e-08)", "optax.contrib.muon()"} <= set(made)


@pytest.mark.parametrize(
    ("make", "expected"), [(optax.sgd, "right"), (wrong, "wrong"), (infinite, "not")]
)
def test_derivatives_are_judged(make, expected, monkeypatch):
    # Here the benchmark's own comparison is asked, not the check of inner loops.
    monkeypatch.setattr("metajax.inner.unroll.lacks_derivative", lambda _: None)
    with jax.enable_x64(True):
        found = outcomes(make(inner_optimizers.RATE), SETTINGS)
    assert found["no gradient is 0"].startswith(expected)

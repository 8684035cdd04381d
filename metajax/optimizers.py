"""Optimizers for inner loops: learned ones, and ones that tune their own rate.

Any Optax optimizer may stand in an inner loop. `learned` makes hyper-parameters of one
meta-parameters, `lstm_optimizer` is a learned network, and `sgd_hd`, `sgdn_hd` and
`adam_hd` adjust their rate as they go. `clip_by_global_norm` is Optax's with a finite
derivative. They live in `metajax.inner`.
"""

from metajax.inner.clipping import clip_by_global_norm as clip_by_global_norm
from metajax.inner.hypergradient import adam_hd as adam_hd
from metajax.inner.hypergradient import hypergradient as hypergradient
from metajax.inner.hypergradient import sgd_hd as sgd_hd
from metajax.inner.hypergradient import sgdn_hd as sgdn_hd
from metajax.inner.learned_optimizer import HyperParameter as HyperParameter
from metajax.inner.learned_optimizer import LearnedOptimizer as LearnedOptimizer
from metajax.inner.learned_optimizer import learned as learned
from metajax.inner.lstm_optimizer import lstm_optimizer as lstm_optimizer

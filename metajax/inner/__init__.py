"""Solving one task: numerics that no learner owns and several use.

Nothing here builds a learner. Read `unroll.py` first: any Optax optimizer for some
steps, with a choice of how the outer gradient passes. `implicit.py` differentiates a
solution instead of the way to it, `solvers.py` fits heads to their optimum,
`learned_optimizer.py` makes hyper-parameters meta-parameters, and `lstm_optimizer.py`
and `hypergradient.py` are optimizers by themselves.
"""

"""Learners that adapt parameters by gradient descent on the support set.

All but `imaml.py` differentiate through the steps (`metajax.inner.unroll`). They differ
in what is adapted (everything, a context in `cavia.py`, a latent code in `leo.py`), in
what is learned beside the start (rates in `meta_sgd.py`, per step in
`maml_plus_plus.py`, a preconditioner in `meta_curvature.py`), and in the outer gradient
(`reptile.py`, `imaml.py`). Take `maml` first, and `maml_plus_plus` where it is
unstable.
"""

"""Learners whose head, or whole answer, is a classical model fitted to its optimum.

`ridge.py` is a closed form, `logistic.py` and `svm.py` iterate to the optimum of a
convex problem over embeddings, and gradients pass through the solution
(`metajax.inner.solvers`). `kernel_svm.py` and `soft_tree.py` read columns of tables
themselves. Take `ridge` first.
"""

"""Learners that compare a query with the support set in an embedding.

All are a model and a head (`metajax.builders.heads`) without an inner loop, and differ
in the distance: to class means (`prototypical.py`), to each example (`matching.py`), a
learned one (`relation.py`), one between embeddings that a task adapts (`feat.py`).
`baseline.py` has no meta-learning, to see what it gains. Take `prototypical` first.
"""

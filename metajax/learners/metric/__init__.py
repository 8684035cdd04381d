"""Learners that compare a query with the support set in an embedding.

Most are a model and a head (`metajax.builders.heads`), and differ in the distance: to
class means (`prototypical.py`, `simple_shot.py`), to each example (`matching.py`), a
learned one (`relation.py`), one between embeddings that a task adapts (`feat.py`).
Transductive ones move the class means by all queries (`bd_cspn.py`,
`laplacian_shot.py`, `pt_map.py`) or descend on them (`tim.py`,
`transductive_fine_tuning.py`). `baseline.py` has no meta-learning, to see what it
gains. Take `prototypical` first.
"""

"""Learners that work on relations between examples, or between whole tasks.

`label_propagation.py` and `graph.py` pass labels along a graph of examples, `arml.py`
refines its start by a graph over tasks, and `dataset2vec.py` embeds whole tables. Take
`label_propagation` first where many queries come at once.
"""

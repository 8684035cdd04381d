"""From a part to a learner: what an author of a method starts from.

* `descent.py`: an inner optimizer becomes a learner (MAML is a call of it).
* `heads.py`: two functions, `fit` and `classify`, become one over any embedding.
* `streams.py`: a reader of one example after another becomes one with a stream.
* `neural_processes.py`: an encoder and a decoder become one that predicts densities.

`prototypes.py`, `controllers.py`, `weight_generators.py`, `decision_tree.py` and
`splits.py` are parts that several methods share. Read `heads.py` first.
"""

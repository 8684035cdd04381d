"""Learners that learn how to descend.

`optimizer_learner.py` learns any optimizer with parameters, from random starts;
`meta_lstm.py` learns an LSTM that is the optimizer, and a start; `lstm_generator.py`
makes the weights of a task. The optimizers themselves are in `metajax.inner`. Take
`optimizer_learner` first.
"""

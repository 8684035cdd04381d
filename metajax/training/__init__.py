"""The outer loop: any learner, any tasks, any Optax optimizer.

Read `trainer.py` first: `metajax.train` from top to bottom. `outer_loop.py` is one step
as a pure function, `task_source.py` feeds it, `outer_gradients.py` has other sources of
its gradient. `history.py`, `run_folder.py`, `checkpoints.py` and `progress.py` keep and
show what happens, `stops.py` says why a run ends early. `whole_run.py` is a run as one
function; `costs.py` and `gradient_bias.py` compare ways to train before it begins.
"""

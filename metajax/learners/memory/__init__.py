"""Learners whose support set is read by a network, with no gradient in `adapt`.

Some read one example after another into a memory of bounded size and are streams
(`mann.py`, `lstm_learner.py`, `sgdstore.py`, `snail.py`, `in_context.py`, `mm_net.py`);
some read a set (`class_np.py` and the neural processes for regression); some make
weights of it (`hypernetwork.py`, `cnaps.py`, `meta_net.py`). Take `conditional_np`
first for regression and `class_np` for classes.
"""

"""The referee: fixed banks of test tasks, and what may be concluded from them.

`metajax.evaluate`, `compare`, `across_seeds` and `leakage` are at the root. Read
`bank.py` first: which tasks a learner is judged on, and how. `metrics.py` says what is
measured in a task, `reports.py` what a result holds and how two are compared,
`transduction.py` whether queries see one another, `ranks.py` how learners stand over
many domains, and `streams.py` judges learners that read one example after another.
"""

from metajax.evaluation.bank import bank_task as bank_task
from metajax.evaluation.ranks import friedman_test as friedman_test
from metajax.evaluation.ranks import nemenyi_test as nemenyi_test
from metajax.evaluation.ranks import rank_learners as rank_learners
from metajax.evaluation.reports import Report as Report
from metajax.evaluation.streams import instance_accuracy as instance_accuracy
from metajax.evaluation.streams import prequential as prequential

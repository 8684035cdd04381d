"""Tasks described, not learned: numbers and embeddings that tell tasks apart.

`meta_features` are statistics and quick classifiers (`table_features.py`,
`landmarkers.py`), `task2vec` is the Fisher information of a probe network
(`fisher.py`), and `fit_warm_start` and `recommend` order configurations by what was
best on tasks like the one at hand (`warm_start.py`). Nothing here is a learner:
descriptions answer no queries.
"""

from metajax.descriptions.fisher import asymmetric_distance as asymmetric_distance
from metajax.descriptions.fisher import symmetric_distance as symmetric_distance
from metajax.descriptions.fisher import task2vec as task2vec
from metajax.descriptions.table_features import META_FEATURES as META_FEATURES
from metajax.descriptions.table_features import meta_features as meta_features
from metajax.descriptions.warm_start import fit_warm_start as fit_warm_start
from metajax.descriptions.warm_start import random_regret_curve as random_regret_curve
from metajax.descriptions.warm_start import recommend as recommend
from metajax.descriptions.warm_start import regret_curve as regret_curve

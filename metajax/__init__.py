"""metajax: functional meta-learning in JAX, one contract for all its families."""

from metajax.filters import all_but as all_but
from metajax.filters import everything as everything
from metajax.filters import only as only
from metajax.learners.gradient.maml import maml as maml
from metajax.learners.metric.prototypical import prototypical as prototypical
from metajax.models.adapters import from_functions as from_functions
from metajax.models.adapters import from_linen as from_linen
from metajax.models.adapters import from_nnx as from_nnx
from metajax.models.networks import conv4 as conv4
from metajax.models.networks import mlp as mlp
from metajax.models.normalization import calibrate as calibrate

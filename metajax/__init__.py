"""metajax: functional meta-learning in JAX, one contract for all its families.

The contract (`Learner`, `Model`, `Task`, `Examples`) and the verbs are here; what they
work on is found in namespaces: `metajax.learners.maml`, `metajax.models.conv4`,
`metajax.tasks.sinusoid`, `metajax.optimizers`, `metajax.outer_gradients`,
`metajax.filters`, `metajax.objectives`, `metajax.distributions`, `metajax.evaluation`,
`metajax.descriptions`, `metajax.plots`. Authors of learners also want
`metajax.builders`, `metajax.inner` and `metajax.masks`.
"""

from metajax import builders as builders
from metajax import descriptions as descriptions
from metajax import distributions as distributions
from metajax import evaluation as evaluation
from metajax import filters as filters
from metajax import inner as inner
from metajax import learners as learners
from metajax import masks as masks
from metajax import models as models
from metajax import objectives as objectives
from metajax import optimizers as optimizers
from metajax import outer_gradients as outer_gradients
from metajax import plots as plots
from metajax import tasks as tasks
from metajax.compute.cores import use_cores as use_cores
from metajax.evaluation.bank import evaluate as evaluate
from metajax.evaluation.reports import across_seeds as across_seeds
from metajax.evaluation.reports import compare as compare
from metajax.evaluation.transduction import leakage as leakage
from metajax.training.checkpoints import load_meta_params as load_meta_params
from metajax.training.costs import explain as explain
from metajax.training.stops import NonFiniteError as NonFiniteError
from metajax.training.trainer import train as train
from metajax.training.whole_run import whole_run as whole_run
from metajax.types import Examples as Examples
from metajax.types import Learner as Learner
from metajax.types import Model as Model
from metajax.types import Task as Task
from metajax.version import __version__ as __version__

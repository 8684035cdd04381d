"""metajax: functional meta-learning in JAX, one contract for all its families."""

from metajax.checkpoints import load_meta_params as load_meta_params
from metajax.evaluation import evaluate as evaluate
from metajax.evaluation import leakage as leakage
from metajax.explain import explain as explain
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
from metajax.models.precision import with_precision as with_precision
from metajax.reports import across_seeds as across_seeds
from metajax.reports import compare as compare
from metajax.tasks.class_table import few_shot as few_shot
from metajax.tasks.class_table import split_classes as split_classes
from metajax.tasks.glyphs import glyphs as glyphs
from metajax.tasks.host import on_host as on_host
from metajax.tasks.loaders import from_arrays as from_arrays
from metajax.tasks.loaders import from_folder as from_folder
from metajax.tasks.loaders import from_tfds as from_tfds
from metajax.tasks.omniglot import omniglot as omniglot
from metajax.tasks.sinusoid import sinusoid as sinusoid
from metajax.trainer import NonFiniteError as NonFiniteError
from metajax.trainer import train as train
from metajax.types import Examples as Examples
from metajax.types import Learner as Learner
from metajax.types import Model as Model
from metajax.types import Task as Task
from metajax.version import __version__ as __version__
from metajax.whole_run import whole_run as whole_run

__all__ = [
    "Examples",
    "Learner",
    "Model",
    "NonFiniteError",
    "Task",
    "__version__",
    "across_seeds",
    "all_but",
    "calibrate",
    "compare",
    "conv4",
    "evaluate",
    "everything",
    "explain",
    "few_shot",
    "from_arrays",
    "from_folder",
    "from_functions",
    "from_linen",
    "from_nnx",
    "from_tfds",
    "glyphs",
    "leakage",
    "load_meta_params",
    "maml",
    "mlp",
    "omniglot",
    "on_host",
    "only",
    "prototypical",
    "sinusoid",
    "split_classes",
    "train",
    "whole_run",
    "with_precision",
]

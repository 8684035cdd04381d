"""metajax: functional meta-learning in JAX, one contract for all its families."""

from metajax.compute.cores import use_cores as use_cores
from metajax.descriptions.fisher import task2vec as task2vec
from metajax.descriptions.table_features import meta_features as meta_features
from metajax.descriptions.warm_start import fit_warm_start as fit_warm_start
from metajax.descriptions.warm_start import recommend as recommend
from metajax.evaluation.bank import evaluate as evaluate
from metajax.evaluation.bank import leakage as leakage
from metajax.evaluation.ranks import rank_learners as rank_learners
from metajax.evaluation.reports import across_seeds as across_seeds
from metajax.evaluation.reports import compare as compare
from metajax.evaluation.streams import instance_accuracy as instance_accuracy
from metajax.evaluation.streams import prequential as prequential
from metajax.filters import all_but as all_but
from metajax.filters import everything as everything
from metajax.filters import only as only
from metajax.inner.learned_optimizer import HyperParameter as HyperParameter
from metajax.inner.learned_optimizer import LearnedOptimizer as LearnedOptimizer
from metajax.inner.learned_optimizer import learned as learned
from metajax.inner.lstm_optimizer import lstm_optimizer as lstm_optimizer
from metajax.learners.gradient.cavia import cavia as cavia
from metajax.learners.gradient.imaml import imaml as imaml
from metajax.learners.gradient.leo import leo as leo
from metajax.learners.gradient.maml import maml as maml
from metajax.learners.gradient.maml_plus_plus import maml_plus_plus as maml_plus_plus
from metajax.learners.gradient.meta_curvature import meta_curvature as meta_curvature
from metajax.learners.gradient.meta_sgd import meta_sgd as meta_sgd
from metajax.learners.gradient.proto_maml import proto_maml as proto_maml
from metajax.learners.gradient.reptile import reptile as reptile
from metajax.learners.memory.attentive_np import attentive_np as attentive_np
from metajax.learners.memory.class_np import class_np as class_np
from metajax.learners.memory.cnaps import cnaps as cnaps
from metajax.learners.memory.conditional_np import conditional_np as conditional_np
from metajax.learners.memory.hypernetwork import hypernetwork as hypernetwork
from metajax.learners.memory.in_context import in_context as in_context
from metajax.learners.memory.latent_np import latent_np as latent_np
from metajax.learners.memory.lstm_learner import lstm_learner as lstm_learner
from metajax.learners.memory.mann import mann as mann
from metajax.learners.memory.meta_net import meta_net as meta_net
from metajax.learners.memory.mm_net import mm_net as mm_net
from metajax.learners.memory.sgdstore import sgdstore as sgdstore
from metajax.learners.memory.snail import snail as snail
from metajax.learners.memory.transformer_np import transformer_np as transformer_np
from metajax.learners.metric.baseline import baseline as baseline
from metajax.learners.metric.feat import feat as feat
from metajax.learners.metric.matching import matching as matching
from metajax.learners.metric.prototypical import prototypical as prototypical
from metajax.learners.metric.relation import relation as relation
from metajax.learners.optimizer.learn_optimizer import (
    learn_optimizer as learn_optimizer,
)
from metajax.learners.optimizer.lstm_generator import lstm_generator as lstm_generator
from metajax.learners.optimizer.meta_lstm import meta_lstm as meta_lstm
from metajax.learners.representation.arml import arml as arml
from metajax.learners.representation.dataset2vec import dataset2vec as dataset2vec
from metajax.learners.representation.graph import graph as graph
from metajax.learners.representation.label_propagation import (
    label_propagation as label_propagation,
)
from metajax.learners.solver.kernel_svm import kernel_svm as kernel_svm
from metajax.learners.solver.logistic import logistic as logistic
from metajax.learners.solver.ridge import ridge as ridge
from metajax.learners.solver.soft_tree import harden as harden
from metajax.learners.solver.soft_tree import soft_tree as soft_tree
from metajax.learners.solver.svm import svm as svm
from metajax.models.adapters import from_functions as from_functions
from metajax.models.adapters import from_linen as from_linen
from metajax.models.adapters import from_nnx as from_nnx
from metajax.models.deep_sets import task_encoder as task_encoder
from metajax.models.lora import with_lora as with_lora
from metajax.models.networks import conv4 as conv4
from metajax.models.networks import identity as identity
from metajax.models.networks import mlp as mlp
from metajax.models.normalization import calibrate as calibrate
from metajax.models.precision import with_precision as with_precision
from metajax.models.recurrent import lstm as lstm
from metajax.tasks.buckets import bucketed as bucketed
from metajax.tasks.buckets import fit_buckets as fit_buckets
from metajax.tasks.functions.gaussian_process import exact_posterior as exact_posterior
from metajax.tasks.functions.gaussian_process import (
    gaussian_process as gaussian_process,
)
from metajax.tasks.functions.image_completion import (
    image_completion as image_completion,
)
from metajax.tasks.functions.regression_families import (
    regression_families as regression_families,
)
from metajax.tasks.functions.sequences import sequence_sinusoid as sequence_sinusoid
from metajax.tasks.functions.sinusoid import sinusoid as sinusoid
from metajax.tasks.images.class_table import few_shot as few_shot
from metajax.tasks.images.class_table import join_classes as join_classes
from metajax.tasks.images.class_table import split_classes as split_classes
from metajax.tasks.images.class_table import whole_classes as whole_classes
from metajax.tasks.images.embedded import embed_table as embed_table
from metajax.tasks.images.embedded import without_embedding as without_embedding
from metajax.tasks.images.glyphs import glyphs as glyphs
from metajax.tasks.images.grain_source import on_host as on_host
from metajax.tasks.images.loaders import from_arrays as from_arrays
from metajax.tasks.images.loaders import from_folder as from_folder
from metajax.tasks.images.loaders import from_tfds as from_tfds
from metajax.tasks.images.omniglot import omniglot as omniglot
from metajax.tasks.images.variable_tasks import meta_dataset_tasks as meta_dataset_tasks
from metajax.tasks.mixtures import mixture as mixture
from metajax.tasks.tables.molecules import from_molecules as from_molecules
from metajax.tasks.tables.molecules import molecule_tasks as molecule_tasks
from metajax.tasks.tables.molecules import read_molecules as read_molecules
from metajax.tasks.tables.synthetic_table import synthetic_table as synthetic_table
from metajax.tasks.tables.table_pairs import table_pairs as table_pairs
from metajax.tasks.tables.table_tasks import row_tasks as row_tasks
from metajax.tasks.tables.table_tasks import table_tasks as table_tasks
from metajax.tasks.tables.tables import from_table as from_table
from metajax.tasks.tables.tabular_prior import tabular_prior as tabular_prior
from metajax.training.checkpoints import load_meta_params as load_meta_params
from metajax.training.costs import explain as explain
from metajax.training.gradient_bias import compare_gradients as compare_gradients
from metajax.training.outer_gradients import (
    evolution_strategies as evolution_strategies,
)
from metajax.training.outer_gradients import pes as pes
from metajax.training.outer_gradients import truncated as truncated
from metajax.training.trainer import NonFiniteError as NonFiniteError
from metajax.training.trainer import train as train
from metajax.training.whole_run import whole_run as whole_run
from metajax.types import Examples as Examples
from metajax.types import Learner as Learner
from metajax.types import Model as Model
from metajax.types import Task as Task
from metajax.version import __version__ as __version__

__all__ = [
    "Examples",
    "HyperParameter",
    "LearnedOptimizer",
    "Learner",
    "Model",
    "NonFiniteError",
    "Task",
    "__version__",
    "across_seeds",
    "all_but",
    "arml",
    "attentive_np",
    "baseline",
    "bucketed",
    "calibrate",
    "cavia",
    "class_np",
    "cnaps",
    "compare",
    "compare_gradients",
    "conditional_np",
    "conv4",
    "dataset2vec",
    "embed_table",
    "evaluate",
    "everything",
    "evolution_strategies",
    "exact_posterior",
    "explain",
    "feat",
    "few_shot",
    "fit_buckets",
    "fit_warm_start",
    "from_arrays",
    "from_folder",
    "from_functions",
    "from_linen",
    "from_molecules",
    "from_nnx",
    "from_table",
    "from_tfds",
    "gaussian_process",
    "glyphs",
    "graph",
    "harden",
    "hypernetwork",
    "identity",
    "image_completion",
    "imaml",
    "in_context",
    "instance_accuracy",
    "join_classes",
    "kernel_svm",
    "label_propagation",
    "latent_np",
    "leakage",
    "learn_optimizer",
    "learned",
    "leo",
    "load_meta_params",
    "logistic",
    "lstm",
    "lstm_generator",
    "lstm_learner",
    "lstm_optimizer",
    "maml",
    "maml_plus_plus",
    "mann",
    "matching",
    "meta_curvature",
    "meta_dataset_tasks",
    "meta_features",
    "meta_lstm",
    "meta_net",
    "meta_sgd",
    "mixture",
    "mlp",
    "mm_net",
    "molecule_tasks",
    "omniglot",
    "on_host",
    "only",
    "pes",
    "prequential",
    "proto_maml",
    "prototypical",
    "rank_learners",
    "read_molecules",
    "recommend",
    "regression_families",
    "relation",
    "reptile",
    "ridge",
    "row_tasks",
    "sequence_sinusoid",
    "sgdstore",
    "sinusoid",
    "snail",
    "soft_tree",
    "split_classes",
    "svm",
    "synthetic_table",
    "table_pairs",
    "table_tasks",
    "tabular_prior",
    "task2vec",
    "task_encoder",
    "train",
    "transformer_np",
    "truncated",
    "whole_classes",
    "whole_run",
    "with_lora",
    "with_precision",
    "without_embedding",
]

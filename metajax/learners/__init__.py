"""Learners: one file a method, in a folder for each family.

Every constructor here builds a `metajax.Learner`. What several methods share is no
learner and lies in `metajax.builders` and `metajax.inner`; no method imports another.

* `gradient/` adapts parameters by descent: read `maml.py` first.
* `metric/` compares embeddings: read `prototypical.py` first.
* `solver/` fits a classical model in closed form or to its optimum: `ridge.py`.
* `memory/` reads the support set by a network, without gradients: `mann.py`, a stream,
  or `conditional_np.py`, a set.
* `optimizer/` learns how to descend: `optimizer_learner.py`.
* `representation/` works on graphs, or on embeddings of whole tasks: `graph.py`.
"""

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
from metajax.learners.metric.bd_cspn import bd_cspn as bd_cspn
from metajax.learners.metric.feat import feat as feat
from metajax.learners.metric.laplacian_shot import laplacian_shot as laplacian_shot
from metajax.learners.metric.matching import matching as matching
from metajax.learners.metric.prototypical import prototypical as prototypical
from metajax.learners.metric.pt_map import pt_map as pt_map
from metajax.learners.metric.relation import relation as relation
from metajax.learners.metric.simple_shot import center_embeddings as center_embeddings
from metajax.learners.metric.simple_shot import simple_shot as simple_shot
from metajax.learners.metric.tim import tim as tim
from metajax.learners.metric.transductive_fine_tuning import (
    transductive_fine_tuning as transductive_fine_tuning,
)
from metajax.learners.optimizer.lstm_generator import lstm_generator as lstm_generator
from metajax.learners.optimizer.meta_lstm import meta_lstm as meta_lstm
from metajax.learners.optimizer.optimizer_learner import (
    optimizer_learner as optimizer_learner,
)
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

"""Tasks: where they come from, and what holds for those of every kind.

A task distribution is a pure function from a random key to a `metajax.Task`. Read
`functions/sinusoid.py` first, then `images/few_shot.py`, the classification tasks that
most papers mean.

* `functions/` draws functions to regress, with nothing to download.
* `images/` draws few-shot classification from tables of images by class.
* `tables/` draws tasks from the rows of tables, real or made up, and from molecules.
* `mixtures.py` mixes distributions, `buckets.py` keeps small tasks cheap, and
  `task_checks.py` checks the first task of a distribution, yours too.
"""

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
from metajax.tasks.images.class_table import join_classes as join_classes
from metajax.tasks.images.class_table import split_classes as split_classes
from metajax.tasks.images.embedded import embed_table as embed_table
from metajax.tasks.images.embedded import without_embedding as without_embedding
from metajax.tasks.images.few_shot import few_shot as few_shot
from metajax.tasks.images.few_shot import whole_classes as whole_classes
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
from metajax.tasks.tables.tables import read_rows as read_rows
from metajax.tasks.tables.tabular_prior import tabular_prior as tabular_prior
from metajax.tasks.tables.units import standard_task as standard_task
from metajax.tasks.task_checks import check_task as check_task

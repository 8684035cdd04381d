"""Models: networks as pure functions that stay fast with parameters for each task.

A `metajax.Model` is `init` and `apply`. `conv4`, `resnet12`, `mlp`, `lstm` and
`identity` are ready to use; `from_linen`, `from_nnx` and `from_functions` make one of
your own network, and `with_lora` and `with_precision` change one. Read `networks.py`
first; `convolution.py` says how a convolution stays fast under `vmap`, and
`normalization.py` whose statistics a normalisation uses.
"""

from metajax.models.adapters import from_functions as from_functions
from metajax.models.adapters import from_linen as from_linen
from metajax.models.adapters import from_nnx as from_nnx
from metajax.models.convolution import Conv as Conv
from metajax.models.convolution import conv_general_dilated as conv_general_dilated
from metajax.models.deep_sets import task_encoder as task_encoder
from metajax.models.lora import with_lora as with_lora
from metajax.models.networks import conv4 as conv4
from metajax.models.networks import identity as identity
from metajax.models.networks import mlp as mlp
from metajax.models.normalization import calibrate as calibrate
from metajax.models.precision import with_precision as with_precision
from metajax.models.recurrent import lstm as lstm
from metajax.models.residual import resnet12 as resnet12

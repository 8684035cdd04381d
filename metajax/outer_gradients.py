"""Where the gradient of the outer loop comes from, and how far each source is off.

`metajax.train` takes one as `outer_gradient`: `reverse_mode` is the default,
`evolution_strategies` needs no derivative, `truncated` and `pes` see a long inner loop
in pieces. `compare_gradients` measures them. They live in `metajax.training`.
"""

from metajax.training.gradient_bias import candidates as candidates
from metajax.training.gradient_bias import compare_gradients as compare_gradients
from metajax.training.outer_gradients import (
    evolution_strategies as evolution_strategies,
)
from metajax.training.outer_gradients import pes as pes
from metajax.training.outer_gradients import truncated as truncated
from metajax.training.outer_loop import reverse_mode as reverse_mode

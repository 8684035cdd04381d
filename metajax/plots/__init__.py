"""Pictures: tasks with predictions, learning curves, gradients, trees, maps of tasks.

They need matplotlib, which the extra `plots` installs. Every function writes one PNG
file. Read `curves.py` first; `figures.py` makes and saves a figure for all of them.
"""

from metajax.plots.curves import plot_gradients as plot_gradients
from metajax.plots.curves import plot_learning_curve as plot_learning_curve
from metajax.plots.curves import plot_learning_curves as plot_learning_curves
from metajax.plots.tasks import TaskMap as TaskMap
from metajax.plots.tasks import plot_task_maps as plot_task_maps
from metajax.plots.tasks import plot_tasks as plot_tasks
from metajax.plots.tasks import task_places as task_places
from metajax.plots.trees import plot_tree as plot_tree

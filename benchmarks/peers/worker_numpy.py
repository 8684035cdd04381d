"""A good sampler in plain NumPy: floats in memory, one gather for a batch of tasks."""

from typing import Any

import numpy as np

from benchmarks.peers.items import Item, images_of
from benchmarks.peers.worker import Step


def prepare(item: Item, variant: str) -> tuple[Step, dict[str, Any]]:
    """See `benchmarks.peers.worker.prepare`."""
    del variant
    images = images_of().astype(np.float32) / 255
    rows, columns = images.shape[:2]
    flat = images.reshape(-1, *images.shape[2:])
    count = item.shot + item.num_queries
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(columns), (item.tasks * item.way, 1))

    def step(steps: int) -> None:
        for _ in range(steps):
            classes = np.stack(
                [rng.choice(rows, item.way, replace=False) for _ in range(item.tasks)]
            )
            examples = rng.permuted(order, axis=1)[:, :count]
            places = classes.reshape(-1, 1) * columns + examples
            np.take(flat, places.reshape(item.tasks, -1), axis=0)

    return step, {"versions": {"numpy": np.__version__}}

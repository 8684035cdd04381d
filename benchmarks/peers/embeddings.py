"""Tasks of embeddings that metajax and easyfsl are both asked: NumPy alone."""

import numpy as np

__all__ = ["few_shot_embeddings"]


def few_shot_embeddings(
    *,
    num_tasks: int,
    way: int,
    shot: int,
    num_queries: int,
    size: int,
    noise: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Classes around centres, cut at 0 as by a ReLU, in double precision.

    Returns:
      Support embeddings `[num_tasks, way * shot, size]` and queries `[num_tasks, way *
      num_queries, size]`, in the order of their classes. Costs of PT-MAP between them
      are small enough for easyfsl, whose exponentials vanish in single precision where
      they exceed 10.
    """
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_tasks, way, 1, size))

    def around(count: int) -> np.ndarray:
        rows = centers + noise * rng.normal(size=(num_tasks, way, count, size))
        return 0.1 * np.maximum(rows, 0).reshape(num_tasks, way * count, size)

    return around(shot), around(num_queries)

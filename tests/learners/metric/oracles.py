"""NumPy, one example after the other: what several transductive learners share."""

import jax
import numpy as np


def rectified(support, labels, queries, sharpness=1.0):
    """The prototypes of BD-CSPN, from lists of members."""
    num = labels.max() + 1
    means = [support[labels == k].mean(0) for k in range(num)]
    shift = support.mean(0) - queries.mean(0)
    members = [list(support[labels == k]) for k in range(num)]
    for query in queries + shift:
        members[np.argmax([cosine(query, mean) for mean in means])].append(query)
    centers = []
    for rows, mean in zip(members, means, strict=True):
        weights = np.exp([sharpness * cosine(row, mean) for row in rows])
        centers.append(weights @ np.stack(rows) / weights.sum())
    return np.stack(centers)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def cosines(rows, centers):
    return np.array([[cosine(row, center) for center in centers] for row in rows])


def distances(rows, centers):
    return np.array(
        [[np.linalg.norm(row - center) for center in centers] for row in rows]
    )


def softmax(scores):
    chances = np.exp(scores - scores.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True)


def adam(loss, point, rate, steps):
    """Kingma and Ba, Algorithm 1, with gradients from central differences."""
    point = np.array(point, float)
    first, second = np.zeros_like(point), np.zeros_like(point)
    for step in range(1, steps + 1):
        slope = np.zeros_like(point)
        for place in np.ndindex(point.shape):
            shift = np.zeros_like(point)
            shift[place] = 1e-5
            slope[place] = (loss(point + shift) - loss(point - shift)) / 2e-5
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        point = point - rate * first / (1 - 0.9**step) / size
    return point


def numbers(task):
    """Support rows and labels, and query rows, in double precision."""
    return (
        np.asarray(task.support.x, float),
        np.asarray(task.support.y),
        np.asarray(task.query.x, float),
    )


def in_double(task):
    """The same task in double precision, where that is enabled."""
    return jax.tree.map(
        lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a,
        jax.device_get(task),
    )

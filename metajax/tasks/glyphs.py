"""Glyphs: an endless family of handwritten-like characters, drawn from a key."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Array, Examples, Task

__all__ = ["SPLITS", "Glyphs", "Strokes", "draw_class", "draw_example", "glyphs"]

SPLITS = ("meta_train", "meta_valid", "meta_test")
IMAGE_SIZE = 28

_STROKES = 5  # most strokes of a class
_CONTROLS = 6  # control points of a stroke
_TRIES = 3  # ways to place a stroke, of which the least crowded is taken
_POINTS = 128  # points of ink in an image
_PEN_WIDTH = 1.43  # pixels
_BLUR = 0.56  # pixels, standard deviation across a line


class Strokes(NamedTuple):
    """A class of glyphs: the strokes that all of its examples share.

    Attributes:
      controls: float32 `[5, 6, 2]`, control points (x to the right, y down) of each
        stroke, in image widths from the centre of the image.
      smoothness: float32 `[5]`, 0 for straight segments between the control points,
        1 for a smooth curve through them.
      drawn: bool `[5]`, which strokes exist.
    """

    controls: Array
    smoothness: Array
    drawn: Array


# Kinds of strokes: turns of the pen between its five steps in units of a drawn angle,
# range of that angle in degrees, range of smoothness, spread of the log step lengths,
# how common.
_KINDS = {
    "line": ((0, 0, 0, 0), (0, 0), (1, 1), 0.2, 0.30),
    "arc": ((1, 1, 1, 1), (12, 55), (1, 1), 0.2, 0.13),
    "loop": ((1, 1, 1, 1), (68, 76), (1, 1), 0.12, 0.12),
    "corner": ((0, 0, 1, 0), (50, 140), (0, 0.4), 0.5, 0.13),
    "box": ((0, 1, 0, 1), (70, 105), (0, 0.7), 0.5, 0.09),
    "hook": ((0, 0, 1, 1.4), (40, 90), (0.6, 1), 0.3, 0.09),
    "s": ((1, 1, -1, -1), (35, 80), (0.8, 1), 0.3, 0.05),
    "zigzag": ((1, -1, 1, -1), (70, 150), (0, 1), 0.3, 0.04),
    "three": ((1, 1, -2.4, 1), (50, 80), (0.5, 1), 0.25, 0.04),
    "spiral": ((0.5, 1, 1.3, 1.3), (50, 85), (1, 1), 0.25, 0.04),
}
_TURNS = np.array([k[0] for k in _KINDS.values()], np.float32)
_ANGLES = np.deg2rad(np.array([k[1] for k in _KINDS.values()], np.float32))
_SMOOTH = np.array([k[2] for k in _KINDS.values()], np.float32)
_LENGTHS = np.array([k[3] for k in _KINDS.values()], np.float32)
_KIND_LOGITS = np.log(np.array([k[4] for k in _KINDS.values()], np.float32))
_HEADINGS = np.deg2rad(np.array([0, 90, 45, 135, -45, 180], np.float32))
_HEADING_LOGITS = np.log(np.array([0.35, 0.38, 0.08, 0.11, 0.04, 0.04], np.float32))
_COUNT_LOGITS = np.log(np.array([0.14, 0.33, 0.31, 0.15, 0.07], np.float32))
_JUNCTION_LOGITS = np.log(np.array([0.3, 0.1, 0.12, 0.13, 0.1, 0.25], np.float32))


_PLAIN = np.array([2.5, 1, 0, 0.5, 0, 0, 0, 0, 0, 0], np.float32)
_PEN = np.exp(-0.5 * np.square(np.arange(6)[:, None] - np.arange(6)[None])).astype("f")
_PEN /= np.linalg.norm(_PEN, axis=1, keepdims=True)


def _draw_stroke(key: Array, kind_logits: Array) -> tuple[Array, Array]:
    """A walk of the pen `[6, 2]` of extent 1, and its smoothness."""
    key_kind, key_heading, key_flip, key_uniform, key_normal = jax.random.split(key, 5)
    kind = jax.random.categorical(key_kind, kind_logits)
    is_reversed, is_mirrored = jax.random.bernoulli(key_flip, 0.45, (2,))
    u_angle, u_smooth = jax.random.uniform(key_uniform, (2,))
    noise = jax.random.normal(key_normal, (2 * _CONTROLS - 2,))

    turns = jnp.asarray(_TURNS)[kind]
    turns = jnp.where(is_reversed, turns[::-1], turns)
    low, high = jnp.asarray(_ANGLES)[kind]
    angle = (low + (high - low) * u_angle) * jnp.where(is_mirrored, -1, 1)
    turns = turns * angle + 0.10 * noise[: _CONTROLS - 2]
    heading = jnp.asarray(_HEADINGS)[
        jax.random.categorical(key_heading, jnp.asarray(_HEADING_LOGITS))
    ]
    heading += 0.10 * noise[-1]
    headings = heading + jnp.pad(jnp.cumsum(turns), (1, 0))
    lengths = jnp.exp(jnp.asarray(_LENGTHS)[kind] * noise[_CONTROLS - 2 : -1])
    steps = lengths[:, None] * jnp.stack([jnp.cos(headings), jnp.sin(headings)], 1)
    walk = jnp.pad(jnp.cumsum(steps, axis=0), ((1, 0), (0, 0)))
    extent = jnp.max(jnp.max(walk, axis=0) - jnp.min(walk, axis=0))
    low, high = jnp.asarray(_SMOOTH)[kind]
    return walk / extent, low + (high - low) * u_smooth


def draw_class(key: Array, alphabet: Array | None = None) -> Strokes:
    """Draws a class."""
    if alphabet is None:
        key, alphabet = jax.random.split(key)
    key_pool, key_style = jax.random.split(alphabet)
    style = jax.random.normal(key_style, (_KIND_LOGITS.size + _COUNT_LOGITS.size + 1,))
    kind_logits = _KIND_LOGITS + 0.7 * style[: _KIND_LOGITS.size]
    count_logits = _COUNT_LOGITS + 0.5 * style[_KIND_LOGITS.size : -1]
    pool = jax.random.split(key_pool, 6)

    keys = jax.random.split(key, 8)
    num = 1 + jax.random.categorical(keys[0], count_logits)
    drawn = jnp.arange(_STROKES) < num
    # a stroke comes from the alphabet's pool, repeats the one before it, or is new
    own = jax.random.split(keys[1], _STROKES)
    shared = pool[jax.random.randint(keys[2], (_STROKES,), 0, 6)]
    uniform = jax.random.uniform(keys[3], (5, _STROKES))
    stroke_keys = jnp.where(uniform[0] < 0.5, shared, own)
    repeats = jnp.concatenate([stroke_keys[:1], stroke_keys[:-1]])
    stroke_keys = jnp.where(uniform[0] > 0.85, repeats, stroke_keys)
    # a single stroke is seldom a mere line
    is_single = num == 1
    kind_logits = kind_logits - jnp.where(is_single, _PLAIN, 0)
    walks, smoothness = jax.vmap(_draw_stroke, (0, None))(stroke_keys, kind_logits)

    sizes = 0.4 + 0.6 * uniform[1]
    is_dot = (uniform[2] < 0.07) & (num > 1)
    sizes = jnp.where(is_dot, 0.02, sizes)
    walks = walks * sizes[:, None, None]

    # Where strokes meet: a point of the new stroke is laid on a point of an earlier one.
    tries = (_STROKES, _TRIES)
    at_new, at_old = jax.random.categorical(
        keys[4], jnp.asarray(_JUNCTION_LOGITS), shape=(2, *tries)
    )
    key_old, key_gap = jax.random.split(keys[5])
    old = jax.random.uniform(key_old, tries)
    old = jnp.floor(old * jnp.arange(_STROKES)[:, None]).astype(int)
    is_free = (uniform[4] < 0.13) | is_dot
    gap = 0.33 * jax.random.normal(key_gap, (*tries, 2))
    controls = walks
    for s in range(1, _STROKES):
        target = controls[old[s], at_old[s]]
        middle = jnp.mean(controls[:s], axis=(0, 1))
        attached = target - walks[s, at_new[s]]
        loose = (middle - jnp.mean(walks[s], axis=0))[None] + gap[s]
        offsets = jnp.where(is_free[s], loose, attached)  # [M, 2]
        candidates = walks[s][None] + offsets[:, None]
        apart = candidates[:, :, None] - controls[:s].reshape(1, 1, -1, 2)
        crowding = jnp.exp(-jnp.sum(jnp.square(apart), -1) / (2 * 0.15**2))
        best = jnp.argmin(jnp.sum(crowding, axis=(1, 2)))
        controls = controls.at[s].set(candidates[best])

    # Upright
    hide = drawn[:, None, None]
    weight = drawn / (jnp.sum(drawn) * _CONTROLS)
    centroid = jnp.einsum("s,scd->d", weight, controls)
    controls = controls - centroid[None, None]
    spread = jnp.einsum("s,sci,scj->ij", weight, controls, controls)
    slant = spread[0, 1] / (jnp.trace(spread) / 2 + 1e-4)
    x, y = controls[..., 0], controls[..., 1]
    controls = jnp.stack([x - 0.6 * slant * y, y - 0.3 * slant * x], axis=-1)

    # Into the box
    low = jnp.min(jnp.where(hide, controls, jnp.inf), axis=(0, 1))
    high = jnp.max(jnp.where(hide, controls, -jnp.inf), axis=(0, 1))
    noise = jax.random.normal(keys[6], (4,))
    size = 0.57 + 0.03 * (num - 1)
    size *= jnp.exp(0.08 * style[-1] + 0.14 * noise[0])
    size = jnp.minimum(size, 0.74)
    stretch = jnp.exp((0.1 * noise[1] - 0.04) * jnp.array([1.0, -1.0]))
    extent = (high - low) * stretch
    scale = stretch * size / jnp.maximum(jnp.max(extent), 0.05)
    centre = 0.015 * noise[2:] - jnp.array([0.014, 0.027])
    # centroid is 0
    controls = (controls - (0.6 * (low + high) / 2)[None, None]) * scale[None, None]
    return Strokes(controls + centre[None, None], smoothness, drawn)


def draw_example(key: Array, strokes: Strokes) -> Array:
    """Draws an example."""
    s = _STROKES
    sizes = {
        "pen": (s, _CONTROLS, 2),
        "ends": (2, s, 1),
        "turn": (s,),
        "scale": (s, 2),
        "shift": (s, 1, 2),
        "smooth": (s,),
        "all_turn": (),
        "all_scale": (),
        "all_stretch": (2,),
        "all_shear": (),
        "all_shift": (2,),
        "width": (),
        "care": (),
    }
    noise = _normals(key, sizes)
    care = 0.9 * jnp.exp(0.35 * noise["care"])
    controls = strokes.controls
    middle = jnp.mean(controls, axis=1, keepdims=True)
    extent = jnp.max(
        jnp.max(controls, axis=1) - jnp.min(controls, axis=1), axis=1
    )[:, None, None]
    # pen
    pen = jnp.einsum("ij,sjd->sid", _PEN, noise["pen"])
    controls += 0.05 * care * jnp.minimum(extent, 0.4) * pen
    # ends
    ends = 0.15 * care * noise["ends"]
    controls = controls.at[:, 0].add(ends[0] * (controls[:, 0] - controls[:, 1]))
    controls = controls.at[:, -1].add(ends[1] * (controls[:, -1] - controls[:, -2]))
    # each stroke
    scale = jnp.exp(0.15 * care * noise["scale"])
    controls = (controls - middle) @ (
        _rotation(0.14 * care * noise["turn"]) * scale[:, None, :]
    )
    controls = controls + middle + 0.025 * care * noise["shift"]
    # the whole
    scale = jnp.exp(0.09 * noise["all_scale"] + 0.06 * noise["all_stretch"])
    shear = jnp.eye(2).at[1, 0].set(0.09 * noise["all_shear"])
    controls = controls @ (_rotation(0.06 * noise["all_turn"]) @ shear * scale[None])
    controls += 0.047 * noise["all_shift"][None, None]
    smoothness = jnp.clip(strokes.smoothness + 0.15 * noise["smooth"], 0, 1)
    width = _PEN_WIDTH * jnp.exp(0.04 * noise["width"])
    return _render(controls, smoothness, strokes.drawn, width)


def _normals(key: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Standard normal arrays from one draw: compiles faster than a draw for each."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)


def _render(controls: Array, smoothness: Array, drawn: Array, width: Array) -> Array:
    """Image `[28, 28, 1]` of lines of `width` pixels along the strokes."""
    controls = (controls + 0.5) * IMAGE_SIZE - 0.5  # pixel centres are integers
    before = 2 * controls[:, :1] - controls[:, 1:2]
    after = 2 * controls[:, -1:] - controls[:, -2:-1]
    padded = jnp.concatenate([before, controls, after], axis=1)
    # the coefficients of the cubic of each segment, [S, C - 1, 4 powers, 2]
    p0, p1, p2, p3 = (padded[:, i : i + _CONTROLS - 1] for i in range(4))
    blend = smoothness[:, None, None]
    line = jnp.stack([p1, p2 - p1, 0 * p1, 0 * p1], axis=2)
    smooth = 0.5 * jnp.stack(
        [
            2 * p1,
            p2 - p0,
            2 * p0 - 5 * p1 + 4 * p2 - p3,
            3 * p1 - p0 - 3 * p2 + p3,
        ],
        axis=2,
    )
    cubic = line + blend[..., None] * (smooth - line)
    cubic = cubic.reshape(-1, 8)
    # spread the points evenly over the length of all segments
    chords = jnp.linalg.norm(p2 - p1, axis=-1) + 0.25
    chords = (chords * drawn[:, None]).reshape(-1)
    ends = jnp.cumsum(chords)
    gap = ends[-1] / _POINTS
    at = (jnp.arange(_POINTS) + 0.5) * gap
    starts = ends - chords
    inside = (at[:, None] >= starts[None]) & (at[:, None] < ends[None])
    inside = inside.astype(jnp.float32)
    chord = jnp.maximum(inside @ chords, 1e-3)
    u = (at - inside @ starts) / chord
    c = (inside @ cubic).reshape(-1, 4, 2)
    u = u[:, None]
    points = c[:, 0] + u * (c[:, 1] + u * (c[:, 2] + u * c[:, 3]))
    speed = jnp.linalg.norm(c[:, 1] + u * (2 * c[:, 2] + 3 * u * c[:, 3]), axis=-1)
    ink = width * (speed + 0.25) / chord * gap / (2 * jnp.pi * _BLUR**2)
    grid = jnp.arange(IMAGE_SIZE, dtype=jnp.float32)
    pulls = jnp.exp(
        -0.5 * jnp.square((grid[None, :, None] - points.T[:, None]) / _BLUR)
    )
    image = (pulls[1] * ink[None]) @ pulls[0].T
    return jnp.minimum(image, 1.0)[..., None]


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Glyphs:
    way: int
    shot: int
    num_queries: int
    split: str

    def __call__(self, key: Array, /) -> Task:
        N, E = self.way, self.shot + self.num_queries
        key_alpha, key_class, key_share, key_ex = jax.random.split(key, 4)
        a = jax.random.split(key_alpha, N)
        a = jnp.where(jax.random.bernoulli(key_share, 0.5, (N,)), a[0], a)
        k = jax.random.split(key_class, N)

        def one(k, a, e):
            strokes = draw_class(k, a)
            return jax.vmap(draw_example, (0, None))(jax.random.split(e, E), strokes)

        x = jax.vmap(one)(k, a, jax.random.split(key_ex, N))

        def part(x):
            y = jnp.repeat(jnp.arange(N, dtype=jnp.int32), x.shape[1])
            return Examples(x.reshape(-1, *x.shape[2:]), y)

        return Task(part(x[:, : self.shot]), part(x[:, self.shot :]))


def glyphs(*, way=5, shot=1, num_queries=15, split="meta_train") -> Glyphs:
    return Glyphs(way=way, shot=shot, num_queries=num_queries, split=split)

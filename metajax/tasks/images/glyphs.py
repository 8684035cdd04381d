"""Glyphs: an endless family of handwritten-like characters, drawn inside `jit`.

A few-shot image family that needs no download. It imitates Omniglot (B. Lake,
R. Salakhutdinov, J. Tenenbaum, "Human-level concept learning through probabilistic
program induction", Science 2015), and borrows from that paper's generative model the
levels of a character, in a much simpler form:

    alphabet   which kinds of strokes are common, and a pool of strokes to reuse
    class      one to five strokes (lines, arcs, loops, corners, hooks, waves) and where
               they touch: `draw_class`
    example    the same strokes by an unsteady hand: control points, strokes and the
               whole move, turn and stretch, and pen and ends vary: `draw_example`

Sizes, pen and spreads were set by statistics of Omniglot's meta_train and meta_valid
characters (Vinyals split) at 28 x 28: ink, extent, centre of mass, and their spreads
within and between classes. Where the two stand (glyphs, Omniglot): share of ink 0.083,
0.083; height 16.7, 16.6 and width 15.8, 15.0 pixels; 5-way 1-shot accuracy of nearest
neighbours on pixels blurred by two pixels 0.69, 0.67.

Classes are numbered within their split by 32 bits, and the key of a class is the pair
(split, number), so splits share no class. Axis letters: `N` way, `K` shot, `Q` queries
per class, `S` strokes, `C` control points of a stroke, `P` points of ink.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_choice
from metajax.tasks.sizes import as_range, check_num_queries, size_masks
from metajax.types import Array, Examples, Task

__all__ = ["SPLITS", "Glyphs", "Strokes", "draw_class", "draw_example", "glyphs"]

Split = Literal["meta_train", "meta_valid", "meta_test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SIZE = 28  # pixels, height and width of an image
_STROKES = 5  # S, strokes of a class at most
_CONTROLS = 6  # C
_POINTS = 128  # P; an image of average ink has one every third of a pixel
_POOL = 6  # strokes that an alphabet's classes share
_PLACES = 4  # places tried for a stroke, of which the least crowded is taken
_SHARED_ALPHABET = 0.5  # chance of a class to come from its task's common alphabet
_LINE_WIDTH = 1.43  # pixels
_LINE_BLUR = 0.56  # pixels, standard deviation across a line


class _Kinds(NamedTuple):
    """Kinds of strokes, which are walks of five steps, one entry for each kind."""

    turns: np.ndarray  # between steps, in units of an angle
    angles: np.ndarray  # lowest and highest angle, in degrees
    smoothness: np.ndarray  # lowest and highest
    unevenness: np.ndarray  # standard deviation of the log step lengths
    chance: np.ndarray
    chance_alone: np.ndarray  # as the only stroke, where a line says too little


_KINDS = _Kinds(
    *(
        np.array(column, np.float32)
        for column in zip(
            ((0, 0, 0, 0), (0, 0), (1, 1), 0.2, 0.30, 0.03),  # line
            ((1, 1, 1, 1), (12, 55), (1, 1), 0.2, 0.13, 0.05),  # arc
            ((1, 1, 1, 1), (68, 76), (1, 1), 0.12, 0.12, 0.12),  # loop
            ((1, 1, 1, 1), (84, 96), (0, 0.3), 0.08, 0.03, 0.03),  # square
            ((0, 0, 1, 0), (50, 140), (0, 0.4), 0.5, 0.12, 0.08),  # corner
            ((0, 1, 0, 1), (70, 105), (0, 0.7), 0.5, 0.09, 0.09),  # two corners
            ((0, 0, 1, 1.4), (40, 90), (0.6, 1), 0.3, 0.09, 0.09),  # hook
            ((1, 1, -1, -1), (35, 80), (0.8, 1), 0.3, 0.05, 0.05),  # S
            ((1, -1, 1, -1), (70, 125), (0, 1), 0.3, 0.03, 0.04),  # zigzag
            ((1, 1, -2.4, 1), (50, 80), (0.5, 1), 0.25, 0.04, 0.04),  # 3
            ((0.5, 1, 1.3, 1.3), (50, 85), (1, 1), 0.25, 0.04, 0.04),  # spiral
            strict=True,
        )
    )
)
_COUNT_CHANCE = np.array([0.14, 0.33, 0.31, 0.15, 0.07], np.float32)
_HEADINGS = np.array([0, 90, 45, 135, -45, 180], np.float32)  # degrees, 90 is down
_HEADING_CHANCE = np.array([0.35, 0.38, 0.08, 0.11, 0.04, 0.04], np.float32)
# Strokes touch at their ends more often than elsewhere.
_JUNCTION_CHANCE = np.array([0.3, 0.1, 0.12, 0.13, 0.1, 0.25], np.float32)


class Strokes(NamedTuple):
    """A class of glyphs: the strokes that its examples have in common.

    Attributes:
      controls: float32 `[S, C, 2]`, control points (x to the right, y down) in image
        widths from the centre of the image.
      smoothness: float32 `[S]`, from 0, straight lines between the control points, to
        1, a smooth curve through them.
      drawn: bool `[S]`, which strokes exist.
    """

    controls: Array
    smoothness: Array
    drawn: Array


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The distribution that `glyphs` builds; its fields are `glyphs`'s arguments.

    `way` and `shot` are inclusive `(low, high)` ranges here. It holds no arrays: as a
    pytree it has no leaves and is static under `jit`.
    """

    way: tuple[int, int]
    shot: tuple[int, int]
    num_queries: int
    split: Split

    def __call__(self, key: Array, /) -> Task:
        """Draws one task; the key is consumed. Shapes are in `glyphs`."""
        way, shot = self.way[1], self.shot[1]
        key_class, key_example, key_size = jax.random.split(key, 3)
        strokes = jax.vmap(draw_class)(*self.class_keys(key_class))
        draw = jax.vmap(jax.vmap(draw_example, (0, None)))
        keys = jax.random.split(key_example, (way, shot + self.num_queries))
        images = draw(keys, strokes)

        support_mask, query_mask = size_masks(
            key_size, self.way, self.shot, self.num_queries
        )
        return Task(
            _examples(images[:, :shot], support_mask),
            _examples(images[:, shot:], query_mask),
        )

    def class_keys(self, key: Array) -> tuple[Array, Array]:
        """Draws the classes of a task: keys `[N]` of classes and of their alphabets."""
        way = self.way[1]
        classes, alphabets, draws = jax.random.bits(key, (3, way), jnp.uint32)
        is_shared = _uniform(draws) < _SHARED_ALPHABET
        alphabets = jnp.where(is_shared, alphabets[0], alphabets)
        place = 2 * SPLITS.index(self.split)
        return _numbered_keys(place, classes), _numbered_keys(place + 1, alphabets)


def glyphs(
    *,
    way: int | tuple[int, int],
    shot: int | tuple[int, int],
    num_queries: int,
    split: Split = "meta_train",
) -> Glyphs:
    """Draws tasks of few-shot classification of glyphs: every task has new classes.

    About half of a task's classes come from one alphabet and share strokes, the others
    from one alphabet each, so that some are easily confused. With a range for `way` or
    `shot` their values are uniform over the range and independent, each task is padded
    to the largest, and masks say what is real; every class of a task has the same
    number of shots.

    Args:
      way: N, classes in a task, at least 1; or an inclusive `(low, high)`.
      shot: K, support examples of each class, at least 1; or an inclusive range.
      num_queries: Q, query examples of each class (not of the task), at least 1.
      split: `"meta_train"`, `"meta_valid"` or `"meta_test"`, which share no class.

    Returns:
      A callable `(key) -> Task`. Both sets are ordered by class: support `x` float32
      `[N * K, 28, 28, 1]` in [0, 1], 1 for ink, and `y` int32 `[N * K]` in [0, N),
      query the same with Q. `mask` is None unless `way` (or, for support, `shot`) is a
      range.

    Raises:
      ValueError: if a number is out of range or the split is unknown.

    Example:
      >>> task = glyphs(way=5, shot=1, num_queries=15)(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((5, 28, 28, 1), (75, 28, 28, 1))
    """
    way_range, shot_range = as_range("way", way), as_range("shot", shot)
    check_num_queries(num_queries)
    check_choice(SPLITS, split=split)
    return Glyphs(
        way=way_range, shot=shot_range, num_queries=int(num_queries), split=split
    )


def draw_class(key: Array, alphabet: Array | None = None) -> Strokes:
    """Draws a class.

    Args:
      key: random key of the class, consumed.
      alphabet: random key of its alphabet, consumed too but used for other classes as
        well: they then have strokes in common. None gives the class its own alphabet.

    Returns:
      Its strokes.

    Example:
      >>> strokes = draw_class(jax.random.key(0))
      >>> draw_example(jax.random.key(1), strokes).shape
      (28, 28, 1)
    """
    if alphabet is None:
        key, alphabet = jax.random.split(key)
    style = _bits(
        alphabet,
        {
            "kinds": _KINDS.chance.shape,
            "counts": _COUNT_CHANCE.shape,
            "pool": (_POOL, 16),
            "size": (),
        },
    )
    bits = _bits(
        key,
        {
            "count": (),
            "stroke": (_STROKES, 16),
            "source": (_STROKES,),
            "member": (_STROKES,),
            "size": (_STROKES,),
            "dot": (_STROKES,),
            "loose": (_STROKES,),
            "touch": (3, _STROKES, _PLACES),
            "gap": (_STROKES, _PLACES, 2),
            "fit": (4,),
        },
    )
    count_chance = _COUNT_CHANCE * jnp.exp(0.5 * _normal(style["counts"]))
    count = 1 + _choose(bits["count"], count_chance)
    kind_chance = jnp.where(count == 1, _KINDS.chance_alone, _KINDS.chance)
    kind_chance *= jnp.exp(0.7 * _normal(style["kinds"]))

    # A stroke is one of the alphabet's, or new, or like the stroke before it.
    source = _uniform(bits["source"])[:, None]
    member = jnp.floor(_uniform(bits["member"]) * _POOL).astype(int)
    stroke = jnp.where(source < 0.5, style["pool"][member], bits["stroke"])
    before = jnp.concatenate([stroke[:1], stroke[:-1]])
    stroke = jnp.where(source > 0.85, before, stroke)
    walks, smoothness = jax.vmap(_walk, (0, None))(stroke, kind_chance)

    is_dot = (_uniform(bits["dot"]) < 0.05) & (count > 1)
    sizes = jnp.where(is_dot, 0.02, 0.45 + 0.55 * _uniform(bits["size"]))
    is_loose = (_uniform(bits["loose"]) < 0.08) | is_dot
    controls = _arrange(
        walks * sizes[:, None, None], is_loose, bits["touch"], _normal(bits["gap"])
    )
    drawn = jnp.arange(_STROKES) < count
    size = (0.52 + 0.035 * count) * jnp.exp(0.08 * _normal(style["size"]))
    return Strokes(_fit(controls, drawn, size, _normal(bits["fit"])), smoothness, drawn)


def draw_example(key: Array, strokes: Strokes) -> Array:
    """Draws an example of a class.

    Args:
      key: random key, consumed.
      strokes: the class.

    Returns:
      float32 `[28, 28, 1]`, from 0 for background to 1 for ink.

    Raises:
      AssertionError: at trace time, if these are not the strokes of one class.
    """
    chex.assert_shape(strokes.controls, (_STROKES, _CONTROLS, 2))
    chex.assert_shape((strokes.smoothness, strokes.drawn), (_STROKES,))
    bits = _bits(
        key,
        {
            "care": (),
            "pen": (_STROKES, _CONTROLS, 2),
            "ends": (2, _STROKES, 1),
            "turn": (_STROKES,),
            "scale": (_STROKES, 2),
            "shift": (_STROKES, 1, 2),
            "smoothness": (_STROKES,),
            "whole_turn": (),
            "whole_scale": (),
            "whole_stretch": (2,),
            "whole_shear": (),
            "whole_shift": (2,),
            "width": (),
        },
    )
    noise = {name: _normal(part) for name, part in bits.items()}
    care = 0.9 * jnp.exp(0.35 * noise["care"])
    controls = strokes.controls
    middle = jnp.mean(controls, axis=1, keepdims=True)
    extent = jnp.max(jnp.ptp(controls, axis=1), axis=1)[:, None, None]

    # The hand: each control point, the ends, each stroke.
    hand = jnp.einsum("cd,sdx->scx", _neighbours(), noise["pen"])
    controls += 0.05 * care * jnp.minimum(extent, 0.4) * hand
    ends = 0.15 * care * noise["ends"]
    controls = controls.at[:, 0].add(ends[0] * (controls[:, 0] - controls[:, 1]))
    controls = controls.at[:, -1].add(ends[1] * (controls[:, -1] - controls[:, -2]))
    scale = jnp.exp(0.14 * care * noise["scale"])
    turn = _rotation(0.14 * care * noise["turn"])
    controls = (controls - middle) @ (turn * scale[:, None, :])
    controls += middle + 0.03 * care * noise["shift"]

    # The whole character.
    scale = jnp.exp(0.09 * noise["whole_scale"] + 0.06 * noise["whole_stretch"])
    shear = jnp.eye(2).at[1, 0].set(0.06 * noise["whole_shear"])
    turn = _rotation(0.05 * noise["whole_turn"])
    controls = controls @ (turn @ shear * scale[None, :])
    controls += 0.047 * noise["whole_shift"][None, None]

    smoothness = jnp.clip(strokes.smoothness + 0.15 * noise["smoothness"], 0, 1)
    width = _LINE_WIDTH * jnp.exp(0.04 * noise["width"])
    return _ink(controls, smoothness, strokes.drawn, width)


def _walk(bits: Array, kind_chance: Array) -> tuple[Array, Array]:
    """A stroke of extent 1 from `bits` `[16]`: controls `[C, 2]` and smoothness."""
    noise = _normal(bits)
    kind = _choose(bits[0], kind_chance)
    turns, angles, smooth, unevenness = (jnp.asarray(k)[kind] for k in _KINDS[:4])
    turns = jnp.where(_uniform(bits[1]) < 0.45, turns[::-1], turns)
    angle = angles[0] + (angles[1] - angles[0]) * _uniform(bits[2])
    angle *= jnp.where(_uniform(bits[3]) < 0.45, -1, 1)  # clockwise a little more often
    heading = jnp.asarray(_HEADINGS)[_choose(bits[4], _HEADING_CHANCE)]
    headings = heading + 6 * noise[5] + jnp.pad(jnp.cumsum(turns * angle), (1, 0))
    headings = jnp.deg2rad(headings + jnp.pad(jnp.cumsum(6 * noise[6:10]), (1, 0)))
    lengths = jnp.exp(unevenness * noise[10:15])
    steps = lengths[:, None] * jnp.stack([jnp.cos(headings), jnp.sin(headings)], 1)
    walk = jnp.pad(jnp.cumsum(steps, axis=0), ((1, 0), (0, 0)))
    smoothness = smooth[0] + (smooth[1] - smooth[0]) * _uniform(bits[15])
    return walk / jnp.max(jnp.ptp(walk, axis=0)), smoothness


def _arrange(walks: Array, is_loose: Array, touch: Array, gap: Array) -> Array:
    """Moves strokes `[S, C, 2]` so that most touch an earlier one."""
    at_old, at_new = _choose(touch[:2], _JUNCTION_CHANCE)
    fraction = _uniform(touch[2])
    controls = walks
    for s in range(1, _STROKES):
        old = jnp.floor(fraction[s] * s).astype(int)
        touching = controls[old, at_old[s]] - walks[s, at_new[s]]
        middle = jnp.mean(controls[:s], axis=(0, 1)) - jnp.mean(walks[s], axis=0)
        offsets = jnp.where(is_loose[s], middle[None] + 0.33 * gap[s], touching)
        places = walks[s][None] + offsets[:, None]
        apart = places[:, :, None] - controls[:s].reshape(1, 1, -1, 2)
        crowd = jnp.exp(-jnp.sum(jnp.square(apart / 0.18), axis=-1) / 2)
        best = jnp.argmin(jnp.sum(crowd, axis=(1, 2)))
        controls = controls.at[s].set(places[best])
    return controls


def _fit(controls: Array, drawn: Array, size: Array, noise: Array) -> Array:
    """Sets a class upright and into the image; `size` in image widths."""
    weight = drawn / (_CONTROLS * jnp.sum(drawn))
    controls -= jnp.einsum("s,scx->x", weight, controls)[None, None]
    spread = jnp.einsum("s,sci,scj->ij", weight, controls, controls)
    slant = spread[0, 1] / (jnp.trace(spread) / 2 + 1e-4)
    x, y = controls[..., 0], controls[..., 1]
    controls = jnp.stack([x - 0.6 * slant * y, y - 0.3 * slant * x], axis=-1)

    is_drawn = drawn[:, None, None]
    low = jnp.min(jnp.where(is_drawn, controls, jnp.inf), axis=(0, 1))
    high = jnp.max(jnp.where(is_drawn, controls, -jnp.inf), axis=(0, 1))
    extent = jnp.maximum(high - low, 0.05)
    squarer = (jnp.max(extent) / extent) ** 0.2
    stretch = squarer * jnp.exp((0.1 * noise[0] - 0.04) * jnp.array([1.0, -1.0]))
    size = jnp.minimum(size * jnp.exp(0.11 * noise[1]), 0.74)
    scale = stretch * size / jnp.max(extent * stretch)
    # Between the centre of mass, which is 0, and the centre of the bounding box.
    centre = 0.6 * (low + high) / 2
    # People write a little up and to the left of the middle.
    place = 0.015 * noise[2:] - jnp.array([0.014, 0.027])
    return (controls - centre[None, None]) * scale[None, None] + place[None, None]


def _ink(controls: Array, smoothness: Array, drawn: Array, width: Array) -> Array:
    """Image `[28, 28, 1]` of lines along the strokes, `width` in pixels.

    A blurred line is an integral of Gaussians along its curve. The `P` points of that
    integral are spread evenly over the length of all strokes, and since a Gaussian is a
    product of one in x and one in y, the image is a product of two small matrices.
    """
    controls = (controls + 0.5) * _SIZE - 0.5  # centres of pixels are integers
    before = 2 * controls[:, :1] - controls[:, 1:2]
    after = 2 * controls[:, -1:] - controls[:, -2:-1]
    padded = jnp.concatenate([before, controls, after], axis=1)
    p0, p1, p2, p3 = (padded[:, i : i + _CONTROLS - 1] for i in range(4))
    # Cubics `[S, C - 1, 4, 2]`: straight lines, and Catmull-Rom splines.
    line = jnp.stack([p1, p2 - p1, 0 * p1, 0 * p1], axis=2)
    powers = [2 * p1, p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * (p1 - p2) + p3 - p0]
    curve = line + smoothness[:, None, None, None] * (
        jnp.stack(powers, axis=2) / 2 - line
    )
    # A dot has no length, so each segment counts a bit longer than it is.
    dab = 0.25
    lengths = (jnp.linalg.norm(p2 - p1, axis=-1) + dab) * drawn[:, None]
    ends = jnp.cumsum(lengths.reshape(-1))
    starts = jnp.pad(ends[:-1], (1, 0))
    spacing = ends[-1] / _POINTS
    at = (jnp.arange(_POINTS) + 0.5)[:, None] * spacing
    segment = ((at >= starts[None]) & (at < ends[None])).astype(at.dtype)
    length = (segment @ lengths.reshape(-1))[:, None]
    u = (at - (segment @ starts)[:, None]) / length
    c = (segment @ curve.reshape(-1, 8)).reshape(-1, 4, 2)
    points = c[:, 0] + u * (c[:, 1] + u * (c[:, 2] + u * c[:, 3]))
    velocity = c[:, 1] + u * (2 * c[:, 2] + 3 * u * c[:, 3])
    speed = (jnp.linalg.norm(velocity, axis=1) + dab) / length[:, 0]
    ink = width * speed * spacing / (2 * jnp.pi * _LINE_BLUR**2)
    pixels = jnp.arange(_SIZE, dtype=at.dtype)
    away = (pixels[None, :, None] - points.T[:, None]) / _LINE_BLUR
    columns, rows = jnp.exp(-jnp.square(away) / 2)
    return jnp.minimum((rows * ink[None]) @ columns.T, 1.0)[..., None]


def _numbered_keys(place: int, numbers: Array) -> Array:
    """Keys that differ for every `place` and number; `numbers` is uint32 `[n]`."""
    words = jnp.stack([jnp.full_like(numbers, 0x676C7970 + place), numbers], axis=1)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _examples(images: Array, mask: Array | None) -> Examples:
    labels = jnp.arange(images.shape[0], dtype=jnp.int32)
    x = images.reshape(-1, *images.shape[2:])
    return Examples(x, jnp.repeat(labels, images.shape[1]), mask)


def _bits(key: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Random uint32 arrays of one draw, which compiles faster than one for each."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = jnp.split(jax.random.bits(key, (ends[-1],), jnp.uint32), ends[:-1])
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _uniform(bits: Array) -> Array:
    """Uniform numbers in [0, 1) from random bits."""
    return (bits >> 8).astype(jnp.float32) / 2**24


def _normal(bits: Array) -> Array:
    """Nearly normal numbers of mean 0 and variance 1 from random bits.

    The sum of the four bytes, which lies within 3.5 standard deviations, so that no
    glyph is freakish; and unlike true normal numbers it costs XLA little to compile.
    """
    total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)
    return (total.astype(jnp.float32) - 510) / 147.8


def _choose(bits: Array, chances: Array | np.ndarray) -> Array:
    """Indices by (unnormalised) chances, from random bits."""
    bounds = jnp.cumsum(chances)[:-1] / jnp.sum(chances)
    return jnp.searchsorted(bounds, _uniform(bits), method="compare_all")


def _neighbours() -> np.ndarray:
    """Mixes `[C, C]` noise of neighbouring control points, keeping its variance."""
    i = np.arange(_CONTROLS)
    weights = np.exp(-np.square(i[:, None] - i[None]) / 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _rotation(angle: Array) -> Array:
    """Matrices `[..., 2, 2]` that turn row vectors by `angle` in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)

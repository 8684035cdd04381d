"""Meta-features against loops that follow their definitions, and what they promise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.descriptions.table_features import META_FEATURES, meta_features
from metajax.types import Examples

# One shape for all tests: compiling is what takes time.
ROWS, COLUMNS, CLASSES = 16, 6, 4


@functools.partial(jax.jit, static_argnames="num_bins")
def padded(x, y, mask, column_mask, is_categorical, num_bins=5):
    return meta_features(
        Examples(x, y, mask),
        num_classes=CLASSES,
        column_mask=column_mask,
        is_categorical=is_categorical,
        num_bins=num_bins,
    )


def pad(x, y, categorical=(), garbage=0.0):
    """Arguments of `padded`, with `garbage` in hidden rows."""
    num, size = x.shape
    whole = np.full((ROWS, COLUMNS), garbage, np.float32)
    whole[:, size:] = 0
    whole[:num, :size] = x
    labels = np.zeros(ROWS, np.int32)
    labels[:num] = y
    is_categorical = np.isin(np.arange(COLUMNS), list(categorical))
    return (
        whole,
        labels,
        np.arange(ROWS) < num,
        np.arange(COLUMNS) < size,
        is_categorical,
    )


def describe(x, y, categorical=(), **options):
    values = np.asarray(padded(*pad(x, y, categorical), **options))
    return dict(zip(META_FEATURES, values, strict=True))


def mixed(seed=0, rows=14, classes=3):
    """Columns of several kinds: normal, skewed, a copy, few values, constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    y = rng.integers(0, classes, rows).astype(np.int32)
    x[:, 0] += y
    x[:, 1] = np.exp(2 * x[:, 1])
    x[:, 2] = 100 + 30 * x[:, 0] + x[:, 2]
    x[:, 3] = rng.integers(0, 3, rows)
    x[:, 4] = 7.3
    return x, y


def discrete(seed=0, rows=13):
    """Many ties: equal rows, of one class or of several."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (rows, 4)).astype(np.float32)
    return x, ((x[:, 0] + rng.integers(0, 2, rows)) % 3).astype(np.int32)


TABLES = {
    "mixed": mixed(0),
    "mixed, other rows": mixed(1),
    "ties": discrete(0),
    "other ties": discrete(1),
    "one row of each class": (mixed(2, rows=4)[0], np.arange(4, dtype=np.int32)),
    "one class": (mixed(3)[0], np.full(14, 2, np.int32)),
    "one column": (mixed(4)[0][:, :1], mixed(4)[1]),
    "constant columns": (np.full((6, 3), 1e6, np.float32), mixed(5, rows=6)[1]),
    "one row": (mixed(6)[0][:1], mixed(6)[1][:1]),
    "two rows": (mixed(6)[0][:2], np.asarray([1, 3], np.int32)),
}
CATEGORICAL = {"mixed": (0, 3, 4), "other ties": (0, 1, 2, 3)}


def entropy(labels):
    shares = [np.mean([a == b for b in labels]) for a in set(labels)]
    return -sum(share * np.log(share) for share in shares)


def chance(scores, label):
    """Chance of `label` among the classes, a dict, with the highest score."""
    if not scores:
        return 0.0
    best = max(scores.values())
    tied = [c for c, s in scores.items() if s >= best - 1e-4 * (1 + abs(best))]
    return (label in tied) / len(tied)


def standardised(x):
    z = np.zeros(x.shape)
    for d in range(x.shape[1]):
        if x[:, d].max() > x[:, d].min():
            z[:, d] = (x[:, d] - x[:, d].mean()) / x[:, d].std()
    return z


def reference(x, y, categorical=(), num_bins=5):
    """All meta-features, one row, column and class at a time, in 64 bits."""
    x, y = x.astype(float), [int(label) for label in y]
    num, size = x.shape
    classes = sorted(set(y))
    varying = [d for d in range(size) if x[:, d].max() > x[:, d].min()]
    numeric = [d for d in varying if d not in categorical]
    z = standardised(x)
    out = dict.fromkeys(META_FEATURES, 0.0)
    shares = [y.count(c) / num for c in classes]
    out["log_rows"], out["log_columns"] = np.log(num), np.log(size)
    out["log_rows_per_column"] = np.log(num / size)
    out["log_classes"] = np.log(len(classes))
    out["smallest_class"], out["largest_class"] = min(shares), max(shares)
    out["constant_columns"] = 1 - len(varying) / size
    out["categorical_columns"] = len(categorical) / size
    out["distinct_values"] = np.mean([len(set(x[:, d])) / num for d in range(size)])
    if numeric:
        skewness = [abs(np.mean(z[:, d] ** 3)) for d in numeric]
        kurtosis = [np.mean(z[:, d] ** 4) - 3 for d in numeric]
        out["skewness_mean"], out["skewness_sd"] = np.mean(skewness), np.std(skewness)
        out["kurtosis_mean"], out["kurtosis_sd"] = np.mean(kurtosis), np.std(kurtosis)
        out["spread"] = np.mean([x[:, d].std() / np.ptp(x[:, d]) for d in numeric])
    if varying:
        r = np.atleast_2d(np.corrcoef(x[:, varying].T))
        pairs = [abs(r[a, b]) for a in range(len(r)) for b in range(a)]
        out["correlation"] = np.mean(pairs) if pairs else 0.0
        out["first_component"] = np.linalg.eigvalsh(r).max() / len(r)
        out["effective_columns"] = len(r) / np.sum(r**2)
    out.update(information(x, y, categorical, num_bins))
    landmarks = {
        "nearest_neighbor": neighbor,
        "nearest_centroid": centroid,
        "naive_bayes": bayes,
        "ridge": ridge,
        "stump": stump,
    }
    for name, landmark in landmarks.items():
        hits = []
        for i in range(num):
            rest = [j for j in range(num) if j != i]
            table = x if name == "stump" else z
            labels = [y[j] for j in rest]
            hits.append(landmark(table[rest], labels, table[i], y[i]) if rest else 0.0)
        out[name] = np.mean(hits)
    return out


def information(x, y, categorical, num_bins):
    num, size = x.shape
    entropies, informations = [], []
    for d in range(size):
        column = list(x[:, d])
        codes = []
        for value in column:
            middle = sum(v < value for v in column) + column.count(value) / 2
            codes.append(int(num_bins * middle / num + 1e-9))
        if d in categorical:
            codes = column
        entropies.append(entropy(codes))
        joint = entropy(list(zip(codes, y, strict=True)))
        informations.append(entropies[-1] + entropy(y) - joint)
    mean, divisor = np.mean(informations), max(np.mean(informations), 1e-3)
    return {
        "class_entropy": entropy(y),
        "column_entropy": np.mean(entropies),
        "mutual_information_mean": mean,
        "mutual_information_max": max(informations),
        "log_equivalent_columns": np.log(1 + entropy(y) / divisor),
        "log_noise_to_signal": np.log(1 + (np.mean(entropies) - mean) / divisor),
    }


def neighbor(x, y, row, label):
    distances = [np.sum((other - row) ** 2) for other in x]
    near = [
        c for c, d in zip(y, distances, strict=True) if d <= 1.0001 * min(distances)
    ]
    return near.count(label) / len(near)


def centroid(x, y, row, label):
    centers = {c: x[np.equal(y, c)].mean(axis=0) for c in set(y)}
    return chance({c: -np.sum((row - m) ** 2) for c, m in centers.items()}, label)


def bayes(x, y, row, label):
    # Columns that were constant with the row are 0 throughout.
    varying = [d for d in range(x.shape[1]) if np.any(x[:, d]) or row[d]]
    scores = {}
    for c in set(y):
        own = x[np.equal(y, c)]
        scores[c] = np.log(len(own))
        for d in varying:
            mean = own[:, d].mean()
            variance = (np.sum((own[:, d] - mean) ** 2) + 1) / (len(own) + 1)
            density = np.exp(-((row[d] - mean) ** 2) / (2 * variance))
            scores[c] += np.log(density / np.sqrt(variance))
    return chance(scores, label)


def ridge(x, y, row, label):
    from sklearn.linear_model import Ridge

    scores = {}
    for c in set(y):
        model = Ridge(alpha=1.0).fit(x, np.equal(y, c).astype(float))
        scores[c] = model.predict(row[None, :])[0]
    return chance(scores, label)


def stump(x, y, row, label):
    best, votes = 0.0, [chance(dict.fromkeys(y, 0), label)]
    for d in range(x.shape[1]):
        values = sorted({*x[:, d], row[d]})
        for value in values[:-1]:
            shares = []
            for is_left in (True, False):
                side = [
                    c
                    for c, v in zip(y, x[:, d], strict=True)
                    if (v <= value) == is_left
                ]
                shares.append({c: side.count(c) / y.count(c) for c in set(y)})
            total = sum(max(side.values()) for side in shares)
            mine = shares[0] if row[d] <= value else shares[1]
            if total > best + 1e-6:
                best, votes = total, []
            if total > best - 1e-6:
                votes.append(chance(mine, label))
    return np.mean(votes)


@pytest.mark.parametrize("name", TABLES)
def test_features_are_what_loops_give(name):
    x, y = TABLES[name]
    columns = CATEGORICAL.get(name, ())
    expected = reference(x, y, columns)
    assert tuple(expected) == META_FEATURES
    for feature, value in describe(x, y, columns).items():
        np.testing.assert_allclose(
            value, expected[feature], rtol=2e-4, atol=2e-5, err_msg=feature
        )


def test_number_of_bins():
    x, y = TABLES["mixed"]
    values = padded(*pad(x, y), num_bins=3)
    expected = reference(x, y, num_bins=3)["mutual_information_mean"]
    got = values[META_FEATURES.index("mutual_information_mean")]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_landmarks_of_separate_classes():
    """Far clusters are told apart; one split has two of three and guesses the rest."""
    y = np.arange(12) % 3
    x = np.stack([100.0 * y, -y], axis=1)
    values = describe(x, y)
    for name in ("nearest_neighbor", "nearest_centroid", "naive_bayes"):
        assert values[name] == 1
    assert values["stump"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["mixed", "ties", "one row of each class"])
def test_hidden_rows_and_columns_are_as_if_absent(name):
    """The same table without any padding, in a program of its own shape."""
    x, y = TABLES[name]
    alone = jax.jit(meta_features, static_argnames="num_classes")
    expected = alone(Examples(jnp.asarray(x), jnp.asarray(y)), num_classes=CLASSES)
    for garbage in (0.0, 1e6, np.nan):
        arguments = pad(x, y, garbage=garbage)
        arguments[0][:, x.shape[1] :] = garbage
        np.testing.assert_allclose(padded(*arguments), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["mixed", "ties", "other ties"])
def test_order_of_rows_columns_and_classes_does_not_matter(name):
    x, y = TABLES[name]
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(x)), rng.permutation(x.shape[1])
    expected = padded(*pad(x, y))
    changed = (
        (x[rows], y[rows]),
        (x[:, columns], y),
        (x, np.asarray([2, 3, 0, 1], np.int32)[y]),
    )
    for other in changed:
        np.testing.assert_allclose(padded(*pad(*other)), expected, rtol=1e-4, atol=2e-5)


def test_units_do_not_matter():
    """Powers of 2 and whole numbers, so that 32 bits round nothing away."""
    x = np.random.default_rng(0).integers(-20, 20, (14, 5)).astype(np.float32)
    y = mixed(0)[1]
    factors = np.asarray([2.0**-40, 2.0**40, 8.0, 1.0, 2.0**100], np.float32)
    shifts = factors * np.asarray([3, -1000, 10_000, 50, 7], np.float32)
    np.testing.assert_allclose(
        padded(*pad(x * factors + shifts, y)), padded(*pad(x, y)), rtol=1e-4, atol=2e-5
    )


def test_vmap_equals_a_loop():
    tables = [pad(*TABLES[name]) for name in ("mixed", "ties", "one class")]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *tables)
    loop = np.stack([padded(*table) for table in tables])
    np.testing.assert_allclose(jax.vmap(padded)(*batch), loop, rtol=1e-4, atol=2e-5)


odd = st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, 3.0, 2.5, 1e-3, 1e6])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, ROWS), columns=st.integers(1, COLUMNS))
def test_finite_and_in_range_on_odd_tables(data, rows, columns):
    cells = data.draw(st.lists(odd, min_size=rows * columns, max_size=rows * columns))
    labels = st.integers(0, CLASSES - 1)
    y = data.draw(st.lists(labels, min_size=rows, max_size=rows))
    categorical = data.draw(st.sets(st.integers(0, columns - 1)))
    x = np.asarray(cells, np.float32).reshape(rows, columns)
    values = describe(x, np.asarray(y), categorical)
    for name, value in values.items():
        assert np.isfinite(value), name
    shares = META_FEATURES[4:9] + META_FEATURES[13:17] + META_FEATURES[23:]
    for name in shares:
        assert -1e-6 <= values[name] <= 1 + 1e-5, name


ERRORS = {
    "num_classes": ({"num_classes": 0}, ValueError, "`num_classes` must be .* got 0"),
    "num_bins": ({"num_bins": 1}, ValueError, "`num_bins` must be .* at least 2"),
    "columns": ({"column_mask": [True]}, AssertionError, "shape"),
    "categorical": ({"is_categorical": [True]}, AssertionError, "shape"),
    "mask": ({"mask": [True]}, AssertionError, "shape"),
    "rows": ({"y": [0, 1]}, AssertionError, "shape"),
    "rank": ({"x": [0.0, 1.0, 2.0]}, AssertionError, "rank"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_explained(name):
    changes, error, message = ERRORS[name]
    arguments = {"x": np.ones((3, 2)), "y": [0, 1, 0], "mask": None} | changes
    examples = Examples(*(arguments.pop(part) for part in ("x", "y", "mask")))
    with pytest.raises(error, match=message):
        meta_features(examples, **{"num_classes": 2, **arguments})


def test_integers_are_numbers_too():
    x, y = TABLES["ties"]
    whole = Examples(x.astype(int), y)
    shape = jax.eval_shape(lambda e: meta_features(e, num_classes=3), whole)
    chex.assert_shape(shape, (len(META_FEATURES),))
    assert shape.dtype == jnp.float32

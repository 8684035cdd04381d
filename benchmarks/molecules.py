"""Few-shot ROC-AUC on assays of molecules, with baselines that ignore the support set.

    python -m benchmarks.molecules --data tox21
    python -m benchmarks.molecules --data sider

The last assays of a data set are held out: 3 of 12 of Tox21, 6 of 27 of SIDER, 5 of 17
of MUV, as in H. Altae-Tran et al., "Low Data Drug Discovery with One-Shot Learning",
ACS Central Science 2017, https://doi.org/10.1021/acscentsci.6b00367. A support set is
10 active and 10 inactive molecules of a held-out assay, drawn at random several times;
the query is every other molecule that the assay measured, and the ROC-AUC of its
scores is taken. All methods see the same draws.

Meta-trained on the other assays, several times from other seeds, is an MLP over
fingerprints: `prototypical`, `ridge` and `maml`. Fitted to each support set alone are a
`random forest`, `logistic regression`, and `nearest neighbours`, whose score is the sum
of the Tanimoto similarities of the nearest ones, those of inactive molecules negative.
Two see training assays and no support set: they tell how much can be scored without
knowing what an assay measures.

* `frequent hitter`: in what share of the training assays that measured it a molecule is
  active; a molecule that none measured gets the mean over the others.
* `joint`: the same MLP with one output, trained on all training assays as if one.

Held-out assays measure much the same molecules as the others. With `--apart`, half of
the molecules are for training and the other half for testing, and the frequent hitter
knows nothing.

What is chosen (steps, regularisation, neighbours) is chosen on the last quarter of the
training assays, at least 2, with the rest to train on; then all are trained on again.

An interval over draws says what other support sets of these assays would give to these
trained models; draws share their molecules, so it says nothing of other assays or
molecules. Over assays it speaks of other assays, but these are few, and not independent
either.

Published values, mean and standard deviation in percent, are of graph networks, as
quoted by table 1 of Pin-Tuning, https://arxiv.org/abs/2411.01158. Fingerprints are an
easier start and a lower ceiling, so they are for orientation only.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.intervals import interval
from benchmarks.pages import Named, interval_cell, markdown
from benchmarks.record import write_result
from metajax.learners.gradient.maml import maml
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.solver.ridge import ridge
from metajax.models.networks import mlp
from metajax.tasks.tables.molecules import (
    MoleculeTable,
    from_molecules,
    molecule_tasks,
    read_molecules,
)
from metajax.training.trainer import train
from metajax.types import Array, Examples, Learner, PyTree

TITLE, FILES = "Few-shot assays of molecules", "molecules-*"
"""Of its part of the page of results, and the results that it shows."""

NUM_HELD_OUT = {"tox21": 3, "sider": 6, "muv": 5}
PUBLISHED = {
    ("tox21", "prototypical"): (74.98, 0.32),
    ("tox21", "maml"): (80.21, 0.24),
    ("sider", "prototypical"): (64.54, 0.89),
    ("sider", "maml"): (70.43, 0.76),
}
BASELINES = ("frequent hitter", "random forest")
"""With which all others are compared."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    data: Literal["tox21", "sider", "muv"] = "tox21"
    fingerprint: Literal["morgan", "ngrams"] | None = None
    """None for Morgan fingerprints if RDKit is installed, else n-grams."""
    apart: bool = False
    """Whether no molecule is both for training and for testing."""
    shot: int = 10
    num_draws: int = 20
    """Support sets of each held-out assay, at least 2."""
    num_seeds: int = 3
    """Trained models of each learner, at least 2."""
    num_tuning_draws: int = 5
    num_queries: int = 10
    """Of each class of a training task."""
    hidden: int = 128
    """Size of the first hidden layer; embeddings have half of it."""
    outer_steps: tuple[int, ...] = (200, 800)
    """From which the number is chosen."""
    outer_rate: float = 1e-3
    tasks_per_step: int = 8
    inner_steps: int = 5
    inner_rate: float = 0.2
    regularisations: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Of logistic regression, from which one is chosen."""
    neighbors: tuple[int, ...] = (1, 3, 5, 10, 20)
    """From which the number is chosen."""
    trees: int = 100


class Problem(NamedTuple):
    """Assays to train on and assays to test on.

    Attributes:
      train: molecules with the labels that may be trained on.
      train_assays: names.
      test: the same molecules with the labels to test by.
      test_assays: names.
      bits: uint8 `[M, F]`, the fingerprints of all molecules.
      shot: active and likewise inactive molecules in a support set.
    """

    train: MoleculeTable
    train_assays: tuple[str, ...]
    test: MoleculeTable
    test_assays: tuple[str, ...]
    bits: np.ndarray
    shot: int


# Rows of the support set, first the inactive and then as many active molecules, and
# rows of queries -> a score for each query, the higher the more likely active.
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
Method = Callable[[Problem, int], Scorer]  # trains by a seed


def main(settings: Settings) -> None:
    """Chooses, trains, tests and writes the result."""
    for name in ("num_draws", "num_seeds"):
        if getattr(settings, name) < 2:
            raise ValueError(
                f"`{name}` must be at least 2, got {getattr(settings, name)}."
            )
    fingerprint = settings.fingerprint or _default_fingerprint()
    settings = dataclasses.replace(settings, fingerprint=fingerprint)
    problem, tuning = problems(settings)
    chosen: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for name, candidates in methods(settings).items():
        start = time.perf_counter()
        best = next(iter(candidates))
        if len(candidates) > 1:
            found = {
                choice: float(judge(make, tuning, settings.num_tuning_draws, 1).mean())
                for choice, make in candidates.items()
            }
            best = max(found, key=found.__getitem__)
            chosen[name] = {"choice": best, "validation": found}
        num_seeds = settings.num_seeds if name in learners(settings) else 1
        scores[name] = judge(candidates[best], problem, settings.num_draws, num_seeds)
        seconds = time.perf_counter() - start
        print(f"{name}: {scores[name].mean():.4f} in {seconds:.0f} s", flush=True)
    rows = summary(scores, problem.test_assays, settings.data)
    for row in rows:
        print(row)
    assays = {"train_assays": problem.train_assays, "test_assays": problem.test_assays}
    write_result(
        result_name(settings),
        dataclasses.asdict(settings) | assays | {"chosen": chosen},
        rows,
    )


def result_name(settings: Settings) -> str:
    """Name of the file; what is not as usual is in it."""
    name = f"molecules-{settings.data}"
    if settings.fingerprint == "ngrams":
        name += "-ngrams"
    return name + "-apart" * settings.apart


def _default_fingerprint() -> Literal["morgan", "ngrams"]:
    return "ngrams" if importlib.util.find_spec("rdkit") is None else "morgan"


def problems(settings: Settings) -> tuple[Problem, Problem]:
    """The problem of the held-out assays, and that by which choices are made."""
    folder = pathlib.Path(os.environ["METAJAX_DATA_DIR"], "molecules")
    table = from_molecules(
        *read_molecules(folder / f"{settings.data}.csv.gz"),
        fingerprint=settings.fingerprint or _default_fingerprint(),
        invalid="drop",
        repeats="keep",  # as when the committed figures were measured
    )
    bits = np.unpackbits(table.fingerprints, axis=1)
    train = test = table
    if settings.apart:
        is_for_training = np.random.default_rng(0).random(len(bits)) < 0.5
        train, test = (
            dataclasses.replace(table, labels=np.where(keep[:, None], table.labels, -1))
            for keep in (is_for_training, ~is_for_training)
        )

    def problem(train_assays: tuple[str, ...], test_assays: tuple[str, ...]) -> Problem:
        needed = settings.shot + settings.num_queries
        enough = tuple(name for name in train_assays if _fewest(train, name) >= needed)
        return Problem(train, enough, test, test_assays, bits, settings.shot)

    names = table.assay_names
    num_train = len(names) - NUM_HELD_OUT[settings.data]
    num_rest = num_train - max(2, num_train // 4)
    return (
        problem(names[:num_train], names[num_train:]),
        problem(names[:num_rest], names[num_rest:num_train]),
    )


def _fewest(table: MoleculeTable, assay: str) -> int:
    labels = table.labels[:, table.assay_names.index(assay)]
    return min(np.sum(labels == 0), np.sum(labels == 1))


# Methods.


def methods(settings: Settings) -> dict[str, dict[Any, Method]]:
    """All methods by name, each with what may be chosen for it."""
    trained: dict[str, dict[Any, Method]] = {
        name: {
            steps: functools.partial(meta_trained, learner, settings, steps)
            for steps in settings.outer_steps
        }
        for name, learner in learners(settings).items()
    }
    return trained | {
        "random forest": {None: functools.partial(forest, settings.trees)},
        "logistic regression": {
            strength: functools.partial(logistic, strength)
            for strength in settings.regularisations
        },
        "nearest neighbours": {
            number: functools.partial(nearest, number) for number in settings.neighbors
        },
        "frequent hitter": {None: frequent_hitter},
    }


@functools.cache  # programs are compiled once for each learner, by its identity
def learners(settings: Settings) -> dict[str, Learner]:
    """What is meta-trained, by name; `joint` does not read its support set."""
    embedding = mlp(settings.hidden // 2, hidden_sizes=(settings.hidden,))
    network = mlp(2, hidden_sizes=(settings.hidden, settings.hidden // 2))
    return {
        "prototypical": prototypical(embedding, way=2),
        "ridge": ridge(embedding, way=2),
        "maml": maml(
            network, optax.sgd(settings.inner_rate), inner_steps=settings.inner_steps
        ),
        "joint": maml(network, optax.sgd(settings.inner_rate), inner_steps=0),
    }


def meta_trained(
    learner: Learner, settings: Settings, steps: int, problem: Problem, seed: int
) -> Scorer:
    """A learner of the library on the training assays."""
    tasks = molecule_tasks(
        problem.train,
        assays=problem.train_assays,
        shot=settings.shot,
        num_queries=settings.num_queries,
    )
    result = train(
        learner,
        tasks,
        optax.chain(optax.clip_by_global_norm(10.0), optax.adam(settings.outer_rate)),
        steps=steps,
        tasks_per_step=settings.tasks_per_step,
        seed=seed,
        steps_per_dispatch=50,
        log_every=1000,
        progress=False,
    )
    columns = [problem.test.assay_names.index(name) for name in problem.test_assays]
    most = int(np.max(np.sum(problem.test.labels[:, columns] >= 0, axis=0)))

    def score(support: np.ndarray, query: np.ndarray) -> np.ndarray:
        # Padded to one size, so that one program serves all assays.
        padded = np.concatenate([query, np.zeros(most - len(query), query.dtype)])
        scores = _answer(
            learner,
            result.meta_params,
            jnp.asarray(problem.bits[support]),
            jnp.asarray(problem.bits[padded]),
            jnp.arange(most) < len(query),
        )
        return np.asarray(scores)[: len(query)]

    return score


@functools.partial(jax.jit, static_argnums=0)
def _answer(
    learner: Learner, meta_params: PyTree, support: Array, query: Array, mask: Array
) -> Array:
    """Logit of active less that of inactive."""
    x, query = support.astype(jnp.float32), query.astype(jnp.float32)
    adapted = learner.adapt(meta_params, Examples(x, _labels(len(x))))
    logits = learner.predict(adapted, query, mask=mask)
    return logits[:, 1] - logits[:, 0]


def _labels(size: int) -> Array:
    return jnp.repeat(jnp.arange(2), size // 2)


def forest(trees: int, problem: Problem, seed: int) -> Scorer:
    """A random forest on each support set, of scikit-learn's defaults."""
    from sklearn.ensemble import RandomForestClassifier

    def score(support: np.ndarray, query: np.ndarray) -> np.ndarray:
        model = RandomForestClassifier(trees, random_state=seed)
        model.fit(problem.bits[support], np.asarray(_labels(len(support))))
        return model.predict_proba(problem.bits[query])[:, 1]

    return score


def logistic(strength: float, problem: Problem, seed: int) -> Scorer:
    """Logistic regression on each support set, by `strength` of regularisation."""
    del seed
    from sklearn.linear_model import LogisticRegression

    def score(support: np.ndarray, query: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=1 / strength, max_iter=1000)
        model.fit(problem.bits[support], np.asarray(_labels(len(support))))
        return model.decision_function(problem.bits[query].astype(np.float32))

    return score


def nearest(number: int, problem: Problem, seed: int) -> Scorer:
    """Nearest neighbours by Tanimoto similarity, shared bits over all bits."""
    del seed

    def score(support: np.ndarray, query: np.ndarray) -> np.ndarray:
        known, asked = (
            problem.bits[rows].astype(np.float32) for rows in (support, query)
        )
        shared = asked @ known.T
        either = asked.sum(axis=1)[:, None] + known.sum(axis=1)[None] - shared
        similarity = shared / np.maximum(either, 1)
        signs = 2 * np.asarray(_labels(len(support))) - 1
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :number]
        return np.sum(np.take_along_axis(similarity, order, 1) * signs[order], axis=1)

    return score


def frequent_hitter(problem: Problem, seed: int) -> Scorer:
    """The share of training assays in which a molecule is active."""
    del seed
    columns = [problem.train.assay_names.index(name) for name in problem.train_assays]
    labels = problem.train.labels[:, columns]
    measured = np.sum(labels >= 0, axis=1)
    share = np.sum(labels == 1, axis=1) / np.maximum(measured, 1)
    share = np.where(measured > 0, share, share[measured > 0].mean())
    return lambda support, query: share[query]


# Testing.


def summary(
    scores: dict[str, np.ndarray], assays: tuple[str, ...], data: str
) -> list[dict[str, Any]]:
    """The rows of the result: for each method first all assays, then each of them.

    Args:
      scores: method -> ROC-AUC `[seeds, assays, draws]`.
      assays: their names.
      data: name of the data set.

    Returns:
      Rows with `mean` and, over draws, `half_width` and `deviation`, of the means over
      seeds (and assays); `deviation_over_seeds` is None for what is trained once. The
      first row of a method also has `above`: how much better it is than each baseline,
      with intervals over draws and over assays.
    """
    rows: list[dict[str, Any]] = []
    for method, values in scores.items():
        row: dict[str, Any] = {"method": method, "assay": "all", **_spread(values)}
        if (data, method) in PUBLISHED:
            row["published"] = PUBLISHED[data, method]
        row["above"] = {}
        for baseline in BASELINES:
            if baseline != method:
                difference = values.mean(axis=0) - scores[baseline].mean(axis=0)
                of_assays = difference.mean(axis=1)
                row["above"][baseline] = {
                    **interval(difference.mean(axis=0)),
                    "half_width_over_assays": interval(of_assays)["half_width"],
                    "better_on": int(np.sum(of_assays > 0)),
                }
        rows.append(row)
        rows += [
            {"method": method, "assay": name, **_spread(values[:, [place]])}
            for place, name in enumerate(assays)
        ]
    return rows


def _spread(values: np.ndarray) -> dict[str, float | None]:
    """Of ROC-AUC `[seeds, assays, draws]`."""
    of_draws, of_seeds = values.mean(axis=(0, 1)), values.mean(axis=(1, 2))
    return {
        **interval(of_draws),
        "deviation": float(of_draws.std(ddof=1)),
        "deviation_over_seeds": (
            float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None
        ),
    }


def judge(
    method: Method, problem: Problem, num_draws: int, num_seeds: int
) -> np.ndarray:
    """ROC-AUC `[seeds, assays, draws]`, fractions."""
    from sklearn.metrics import roc_auc_score

    scores = np.zeros((num_seeds, len(problem.test_assays), num_draws))
    for seed in range(num_seeds):
        scorer = method(problem, seed)
        for place, name in enumerate(problem.test_assays):
            column = problem.test.assay_names.index(name)
            labels = problem.test.labels[:, column]
            for number in range(num_draws):
                support, query = draw(labels, problem.shot, (column, number))
                answer = scorer(support, query)
                scores[seed, place, number] = roc_auc_score(labels[query], answer)
    return scores


def draw(
    labels: np.ndarray, shot: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a support set, inactive and then active, and all other measured rows."""
    generator = np.random.default_rng(seed)
    support = np.concatenate(
        [
            generator.choice(np.flatnonzero(labels == label), shot, replace=False)
            for label in (0, 1)
        ]
    )
    return support, np.setdiff1d(np.flatnonzero(labels >= 0), support)


def section(records: Named) -> str:
    """Its part of the page of results."""
    parts = [
        "ROC-AUC in percent after 10 active and 10 inactive molecules of a held-out "
        "assay, on all others that it measured; mean over assays, support draws and "
        "training seeds. ± and differences are over draws, which share their "
        "molecules; in brackets, the half-width over assays, which are few, and on how "
        "many of them it is better. Seeds: standard deviation. Published: graph "
        "networks, mean and standard deviation, see `benchmarks/molecules.py`. The "
        "frequent hitter and `joint` ignore the support set.\n"
    ]
    for _, record in records:
        settings, results = record["settings"], record["results"]
        assays = settings["test_assays"]
        molecules = "other molecules than in training" if settings["apart"] else "all"
        parts.append(
            f"{settings['data']}, {settings['fingerprint']} fingerprints, "
            f"molecules: {molecules}; {len(settings['train_assays'])} assays to train "
            f"on, {settings['num_draws']} draws, {settings['num_seeds']} seeds:\n"
        )
        baselines = list(results[0]["above"])
        rows = []
        for r in results:
            if r["assay"] == "all":
                seeds, published = r["deviation_over_seeds"], r.get("published")
                row = [
                    r["method"],
                    interval_cell(r, 1, 100),
                    "" if seeds is None else f"{100 * seeds:.1f}",
                    "" if published is None else "{:.1f} ({:.1f})".format(*published),
                ]
                for baseline in baselines:
                    above = r["above"].get(baseline)
                    row.append("")
                    if above is not None:
                        width = 100 * above["half_width_over_assays"]
                        row[-1] = (
                            f"{interval_cell(above, 1, 100)} ({width:.1f}; "
                            f"{above['better_on']} of {len(assays)})"
                        )
                rows.append(row)
        above = [f"above {baseline}" for baseline in baselines]
        header = ["method", "ROC-AUC", "seeds", "published", *above]
        parts.append(markdown(header, rows))
        rows = [
            [
                method,
                *(
                    interval_cell(r, 1, 100)
                    for r in results
                    if r["method"] == method and r["assay"] != "all"
                ),
            ]
            for method in dict.fromkeys(r["method"] for r in results)
        ]
        parts.append(markdown(["each assay", *assays], rows))
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

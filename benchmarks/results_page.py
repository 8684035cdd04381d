"""Writes `benchmarks/RESULTS.md` from the committed results of learning.

    python -m benchmarks.results_page           # rewrite it
    python -m benchmarks.results_page --check   # fail if that would change it

The README shows the part of its first table that has published numbers beside it, see
`benchmarks.table`; speed has a page of its own, see `benchmarks.speed`.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.pages import rewrite_or_check
from benchmarks.record import RESULTS
from benchmarks.table import table

PAGE = pathlib.Path(__file__).parent / "RESULTS.md"
Record = dict[str, Any]


def main() -> None:
    """Rewrites or checks the page."""
    rewrite_or_check(PAGE, page(RESULTS), "benchmarks.results_page", __doc__)


def page(results: pathlib.Path) -> str:
    """The page as Markdown."""
    parts = [
        "# Results\n",
        "This page is written by `python -m benchmarks.results_page` from the JSON "
        "files in `benchmarks/results`; each names the command, seed, versions, "
        "revision and machine behind its numbers. ± is the half-width of a 95 % "
        "interval, over test tasks unless said otherwise.\n",
        "## Few-shot classification and sinusoids\n",
        "Accuracy in percent, or mean squared error after one inner step.\n",
        table(results),
    ]
    for title, pattern, text in SECTIONS:
        records = [
            (path, json.loads(path.read_text()))
            for path in sorted(results.glob(f"{pattern}.json"))
        ]
        if records:
            parts += [f"## {title}\n", text(records)]
    return "\n".join(parts)


Named = Sequence[tuple[pathlib.Path, Record]]


def _sinusoids(records: Named) -> str:
    rows = []
    for _, record in records:
        one, last = record["results"][1], record["results"][-1]
        if "median" not in last:
            continue
        settings = record["settings"]
        rows.append(
            [
                settings["learner"],
                settings["seed"],
                _interval(one, 3),
                f"{one['median']:.3f}",
                _interval(last, 3),
                f"{last['median']:.3f}",
                f"{100 * last['diverged']:.1f} %",
            ]
        )
    text = (
        "Trained for one inner step; 10 points, 2000 test tasks. A task has diverged "
        "if its squared error is above 25, the square of the largest amplitude; one "
        "such task may be the mean by itself.\n\n"
    )
    header = ["learner", "seed", "1 step", "median", "10 steps", "median", "diverged"]
    return text + _markdown(header, rows)


def _hypergradient(records: Named) -> str:
    parts = [
        "Validation loss in nats of a logistic regression after training from several "
        "initial rates, mean over seeds; ± over seeds, and for the gain over paired "
        "seeds.\n"
    ]
    for path, record in records:
        settings, results = record["settings"], record["results"]
        parts.append(
            f"{settings['data']}, {settings['epochs']} epochs "
            f"({settings['optimizer_steps']:,} steps), {settings['num_seeds']} seeds:\n"
        )
        losses = {
            (r["optimizer"], r["initial_rate"]): r
            for r in results
            if "validation_loss" in r
        }
        ranges = {r["optimizer"]: r for r in results if "range_over_rates" in r}
        rows = []
        for name, over in ranges.items():
            row = [name]
            for rate in settings["rates"]:
                found = losses[name, rate]
                row.append(f"{found['validation_loss']:.3f}")
                if "gain" in found:
                    gain, width = found["gain"], found["gain_half_width"]
                    row[-1] += f" (gain {gain:.3f} ± {width:.3f})"
            width = over["range_over_rates_half_width"]
            rows.append([*row, f"{over['range_over_rates']:.3f} ± {width:.3f}"])
        rates = [f"{rate:g}" for rate in settings["rates"]]
        parts.append(_markdown(["from", *rates, "range"], rows))
        parts.append(_picture(path))
    return "\n".join(parts)


def _quadratics(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    tuned = [r for r in results if r["experiment"] == "tuned optimizers"]
    rows = [
        [
            r["optimizer"],
            "learned" if r["rate"] is None else f"{r['rate']:.3g}",
            _interval(r, 4),
            f"{r['median']:.4f}",
            ""
            if r["rate"] is None
            else f"{r['worse_than_lstm']:.4f} ± {r['worse_than_lstm_half_width']:.4f}",
        ]
        for r in tuned
    ]
    found = [r for r in results if r["experiment"] == "learned rate"]
    rates = [
        [
            r["inner_steps"],
            f"{r['learned']:.6f}",
            f"{r['searched']:.6f}",
            f"{r['difference']:.0e}",
        ]
        for r in found
    ]
    return "\n".join(
        [
            f"The value after {settings['inner_steps']} steps on "
            f"{settings['num_test_tasks']} fresh problems in {settings['dim']} "
            "dimensions; rates are the best of a grid on other problems.\n",
            _markdown(["optimizer", "rate", "mean", "median", "above the LSTM"], rows),
            _picture(path),
            "The best rate for k steps of SGD, learned through the steps, against a "
            "search on the same problems:\n",
            _markdown(["k", "learned", "searched", "difference"], rates),
        ]
    )


def _tables(records: Named) -> str:
    parts = [
        "Accuracy in percent on 500 held-out tasks of two classes, 20 columns and 32 "
        "support rows; differences are paired.\n"
    ]
    for _, record in records:
        family = record["settings"]["family"]
        what = "draw everything anew" if family is None else "are of one family"
        parts.append(f"Tasks that {what}:\n")
        rows = [
            [
                r["method"],
                _interval(r, 2, 100),
                *(
                    _interval(r[f"{ours}_is_better_by"], 2, 100)
                    if f"{ours}_is_better_by" in r
                    else ""
                    for ours in ("maml", "meta-sgd")
                ),
            ]
            for r in record["results"]
        ]
        header = ["method", "accuracy", "MAML is better by", "Meta-SGD is better by"]
        parts.append(_markdown(header, rows))
    return "\n".join(parts)


def _recommend(records: Named) -> str:
    [(_, record)] = records
    settings = record["settings"]

    def paired(row: Record, name: str) -> str:
        if name not in row:
            return ""
        return f"{_interval(row[name], 3)} ({_signs(row[name])})"

    rows = [
        [
            r["trials"],
            r["method"],
            _interval(r, 3),
            paired(r, "lower_than_default_by"),
            paired(r, "lower_than_random_by"),
        ]
        for r in record["results"]
    ]
    text = (
        "Normalised regret of CART's depth and leaf size after some trials on PMLB's "
        f"tables, each held out in turn, {settings['tasks_per_table']} tasks of 20 to "
        "200 rows of each; ± over tables, differences paired, with how many tables are "
        "better and worse.\n\n"
    )
    header = ["trials", "order", "regret", "lower than default", "lower than random"]
    return text + _markdown(header, rows)


def _kernel_svm(records: Named) -> str:
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    texts = {
        "tables": (
            f"PMLB's tables in {settings['folds']} folds, two classes, 10 to 30 "
            f"support rows of each, {settings['tasks_per_table']} tasks of each table; "
            "± over tables, differences paired, with how many tables are better and "
            "worse:\n"
        ),
        "columns": (
            f"Synthetic tables of one family, {settings['num_family_tasks']} tasks; ± "
            "over tasks:\n"
        ),
    }
    parts = [
        "Accuracy in percent of support vector machines on raw columns; what is "
        "compared is said in `benchmarks/kernel_svm.py`.\n"
    ]
    for part, text in texts.items():
        rows = []
        for r in results:
            if r["part"] != part or "fold" in r:
                continue
            row = [r["method"], _interval(r, 2, 100), ""]
            if "learned_is_higher_by" in r:
                found = r["learned_is_higher_by"]
                row[-1] = f"{_interval(found, 2, 100)} ({_signs(found)})"
            rows.append(row)
        header = ["method", "accuracy", "learned is higher by"]
        parts += [text, _markdown(header, rows)]
    return "\n".join(parts)


def _stream_cost(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    lengths = settings["lengths"]
    rows = []
    for name in dict.fromkeys(r["learner"] for r in results):
        of_learner = [r for r in results if r["learner"] == name]
        row = [name, *(f"{1e3 * r['adapt_s']:.2f}" for r in of_learner)]
        row.append(f"{1e3 * of_learner[-1]['answer_s']:.2f}")
        rows.append([*row, f"{of_learner[-1]['compile_s']:.1f}"])
    text = (
        "Milliseconds to adapt to a support set in one compiled call, those to answer "
        f"100 queries after {lengths[-1]:,} examples, and seconds to compile for that "
        f"many, on {record['device']}. See `benchmarks/stream_cost.py`.\n\n"
    )
    header = ["learner", *(f"{length:,}" for length in lengths), "answer", "compile"]
    return text + "\n".join([_markdown(header, rows), _picture(path)])


def _prior_fitted(records: Named) -> str:
    [(_, record)] = records
    settings, rows = record["settings"], []
    for r in sorted(record["results"], key=lambda r: r["mean_rank"]):
        row = [r["method"], f"{r['mean_rank']:.2f}", _interval(r, 2, 100), ""]
        if "prior_fitted_is_higher_by" in r:
            found = r["prior_fitted_is_higher_by"]
            row[-1] = f"{_interval(found, 2, 100)} ({_signs(found)})"
        rows.append(row)
    text = (
        f"{len(settings['tables'])} tables of PMLB, {settings['tasks_per_table']} "
        "support sets of 20 to 200 rows each; accuracy in percent, ± over tables, "
        "differences paired, with how many tables are better and worse. The network "
        f"({settings['layers']} layers of {settings['size']}) was trained on "
        f"{settings['outer_steps'] * settings['tasks_per_step']:,} random tables and "
        "on no real one. See `benchmarks/prior_fitted.py`.\n\n"
    )
    header = ["method", "mean rank", "accuracy", "prior-fitted is higher by"]
    return text + _markdown(header, rows)


def _task_map(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    texts = {
        "domain": (
            "Six domains of images; reference tasks have other classes of the domain; "
            "± over domains:\n"
        ),
        "alphabet": "The same for alphabets of Omniglot; ± over alphabets:\n",
        "table": (
            f"Samples of {settings['folds']} folds of held-out PMLB tables, to be "
            "found among those of their fold; ± over tables:\n"
        ),
    }
    parts = [
        "Accuracy in percent with which the nearest reference task says where a task "
        "is from; what is compared is said in `benchmarks/task_map.py`.\n"
    ]
    for of, text in texts.items():
        found = [r for r in results if r.get("of") == of]
        rows = [[r["representation"], _interval(r, 1, 100)] for r in found]
        rows.append(["chance", f"{100 * found[0]['chance']:.1f}"])
        parts += [text, _markdown(["representation", "accuracy"], rows)]
    pairs = {r["metric"]: r for r in results if r["part"] == "pairs"}
    parts += [
        "Dataset2Vec, asked whether two samples are of one held-out table, is right in "
        f"{_interval(pairs['accuracy'], 1, 100)} % of balanced pairs, at "
        f"{_interval(pairs['nll'], 3)} nats; ± over folds.\n",
        _picture(path),
        "The warm start of decision trees (see above) by other features of tasks; "
        "normalised regret, ± over tables, differences paired:\n",
    ]
    rows = []
    for r in results:
        if r["part"] == "warm start":
            row = [r["trials"], r["features"], _interval(r, 3), ""]
            if "lower_than_meta_features_by" in r:
                lower = r["lower_than_meta_features_by"]
                row[-1] = f"{_interval(lower, 3)} ({_signs(lower)})"
            rows.append(row)
    header = ["trials", "features", "regret", "lower than by meta-features"]
    return "\n".join([*parts, _markdown(header, rows)])


def _embeddings(records: Named) -> str:
    [(_, record)] = records
    settings = record["settings"]
    text = (
        f"Omniglot, {settings['num_test_tasks']:,} tasks with 15 queries, after "
        f"{settings['outer_steps']:,} steps of one {settings['way']}-way 1-shot task "
        f"with {settings['num_queries']} queries, one seed; in brackets, how much "
        "better than `prototypical` on the same tasks. One short budget for all, see "
        "`benchmarks/embeddings.py`.\n\n"
    )
    return text + _beside_reference(record["results"])


def _readers(records: Named) -> str:
    [(_, record)] = records
    settings = record["settings"]
    text = (
        "Omniglot's images as embeddings of Prototypical Networks "
        f"({settings['embedding_steps']:,} steps of a "
        f"{settings['embedding_way']}-way 1-shot task), {settings['num_test_tasks']:,} "
        f"tasks with 15 queries. A step has {settings['tasks_per_step']} 5-way tasks "
        f"of 1 to 5 shots with {settings['num_queries']} queries; one seed. In "
        "brackets, how much better than `prototypical` on the same tasks. See "
        "`benchmarks/readers.py`.\n\n"
    )
    return text + _beside_reference(record["results"])


def _beside_reference(results: list[Record]) -> str:
    """Accuracy by learner and protocol, with the paired difference in brackets."""
    protocols = list(dict.fromkeys((r["way"], r["shot"]) for r in results))
    rows = []
    for name in dict.fromkeys(r["learner"] for r in results):
        of_learner = {(r["way"], r["shot"]): r for r in results if r["learner"] == name}
        first = next(iter(of_learner.values()))
        steps = f", {first['outer_steps']:,} steps" if "outer_steps" in first else ""
        row = [name + steps, first["protocol"]]
        for protocol in protocols:
            r = of_learner.get(protocol)
            row.append("" if r is None else _interval(r, 2, 100))
            if r is not None and "better_by" in r:
                row[-1] += f" ({_interval(r['better_by'], 2, 100)})"
        rows.append(row)
    header = ["learner", "protocol", *(f"{w}-way {s}-shot" for w, s in protocols)]
    return _markdown(header, rows)


def _memory_sequences(records: Named) -> str:
    parts = [
        "Omniglot in 20 x 20 pixels, 5 classes with 10 drawings each in random order: "
        "accuracy in percent at the n-th drawing of a class, which is named before its "
        "class is told. See `benchmarks/memory_sequences.py`.\n"
    ]
    shown = (1, 2, 3, 4, 5, 10)
    for path, record in records:
        settings, rows = record["settings"], []
        for r in record["results"]:
            numbers = zip(r["mean"], r["half_width"], strict=True)
            each = [_interval({"mean": m, "half_width": w}, 1, 100) for m, w in numbers]
            rows.append([r["learner"], *(each[n - 1] for n in shown)])
            if "published" in r:
                found = {int(n): 100 * v for n, v in r["published"].items()}
                row = [f"{found[n]:.1f}" if n in found else "" for n in shown]
                rows.append([f"{r['learner']}, published", *row])
        parts += [
            f"Split `{settings['split']}`, {settings['outer_steps']:,} steps of "
            f"{settings['tasks_per_step']} sequences, drawings turned by up to "
            f"{settings.get('most_turn', 0.0)} radians, seed {settings['seed']}, "
            f"{record['results'][0]['num_tasks']:,} test sequences:\n",
            _markdown(["learner", *(f"{n}." for n in shown)], rows),
            _picture(path),
        ]
    parts.append(_picture(records[0][0].with_name("memory-sequences-reads.json")))
    return "\n".join(parts)


def _cached_features(records: Named) -> str:
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    first, *of_learners = results
    shots = settings["shots"]
    rows = [
        [
            name,
            *(
                f"{r['seconds']:.1f}"
                for shot in shots
                for r in of_learners
                if (r["learner"], r["shot"]) == (name, shot)
            ),
        ]
        for name in dict.fromkeys(r["learner"] for r in of_learners)
    ]
    text = (
        f"Seconds to adapt to {settings['num_tasks']:,} {settings['way']}-way tasks "
        f"and to answer {settings['num_queries']} queries of each class, in one "
        f"compiled call, on {record['device']}. To embed the {first['images']:,} "
        f"images once took {first['seconds']:.1f} s.\n\n"
    )
    return text + _markdown(["learner", *(f"{shot}-shot" for shot in shots)], rows)


def _soft_trees(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    of_part: dict[str, list[Record]] = {}
    for r in results:
        of_part.setdefault(r["part"], []).append(r)
    rows = []
    for r in of_part["methods"]:
        row = [r["method"], _interval(r, 2, 100), ""]
        if "learned_is_higher_by" in r:
            found = r["learned_is_higher_by"]
            row[-1] = f"{_interval(found, 2, 100)} ({_signs(found)})"
        rows.append(row)
    sizes = []
    for r in of_part["sizes"]:
        found = r["learned_is_higher_by"]
        sizes.append(
            [
                "{} to {}".format(*r["rows"]),
                _interval(r, 2, 100),
                f"{_interval(found, 2, 100)} ({_signs(found)})",
            ]
        )
    folds = [
        [
            r["fold"],
            r["method"],
            f"{r['expected_depth']:.2f}",
            f"{r['hard_depth']:.2f}",
            ", ".join(f"{gate:.2f}" for gate in r["learned"]["depth_gates"]),
            *(
                f"{r['learned'][name]:.2f}"
                for name in ("min_mass", "penalty", "smoothing", "temperature")
            ),
        ]
        for r in of_part["fold"]
    ]
    header = ["fold", "tree", "expected depth", "hard depth", "gates"]
    header += ["least rows", "penalty", "smoothing", "temperature"]
    return "\n".join(
        [
            f"Accuracy in percent on PMLB's tables in {settings['folds']} folds, tasks "
            f"of 5 to 50 support rows, {settings['tasks_per_table']} of each table, "
            f"trees of at most {settings['depth']} levels; ± over tables, differences "
            "paired, with how many tables are better and worse. What is compared is "
            "said in `benchmarks/soft_trees.py`.\n",
            _markdown(["method", "accuracy", "learned is higher by"], rows),
            "The learned tree, hardened, against CART of the same depth, by support "
            "rows:\n",
            _markdown(["rows", "accuracy", "higher than CART by"], sizes),
            "What was learned: depth of the soft tree in the mean over query rows, "
            "that of the hard one, probabilities to go on at each level before what "
            "the node adds, and the numbers of `metajax.learners.soft_tree`:\n",
            _markdown(header, folds),
            _picture(path),
        ]
    )


def _ablation(records: Named) -> str:
    [(_, record)] = records
    settings = record["settings"]
    rows = [
        [
            r["variant"],
            _interval(r, 2, 100),
            _interval(r["worse_by"], 2, 100) if "worse_by" in r else "",
        ]
        for r in record["results"]
    ]
    text = (
        f"Omniglot 5-way 1-shot with 15 queries, {settings['num_test_tasks']} tasks, "
        f"after {settings['outer_steps']:,} steps of {settings['tasks_per_step']} "
        "tasks, one seed; differences are paired.\n\n"
    )
    return text + _markdown(["what is on", "accuracy", "worse than all by"], rows)


def _sequences(records: Named) -> str:
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    rows = []
    for r in results:
        if "seed" in r:
            continue
        differences = [
            f"{one['difference']:.4f} ± {one['difference_half_width']:.4f}"
            for one in results
            if one["learner"] == r["learner"] and "difference" in one
        ]
        rows.append([r["learner"], _interval(r, 4), ", ".join(differences)])
    text = (
        "Mean squared error of the next value of noisy sinusoids, with "
        f"{settings['shot']} support sequences of {settings['length']} values, "
        f"{settings['num_test_tasks']} test tasks and {settings['num_seeds']} seeds; ± "
        "over seeds (`known task`: over tasks). Differences are paired, one for each "
        "seed, and negative where the generator is better.\n\n"
    )
    return text + _markdown(["learner", "error", "generator less this"], rows)


def _function_families(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    names = list(dict.fromkeys(r["learner"] for r in results))
    rows = []
    for r in results:
        if r["family"] != "all":
            continue
        row = [r["learner"], _interval(r, 3), f"{r['median']:.3f}"]
        row.append(", ".join(f"{seed:.3f}" for seed in r["seeds"]))
        published = r.get("published")
        row.append("" if published is None else "{:.3f} ± {:.3f}".format(*published))
        if "of_maml" in r:
            row.append(f"{max(r['of_maml']):.2f}")
            row.append(_interval(r["below_maml"], 3))
        rows.append([*row, *[""] * (7 - len(row))])
    text = (
        f"Mean squared error after {settings['inner_steps']} inner steps on "
        f"{settings['shot']} points of a function of one of six families, "
        f"{settings['num_test_tasks']} test tasks of each, "
        f"{settings['outer_steps']:,} outer steps (the paper's code takes 70,000), "
        f"{settings['num_seeds']} seeds; errors hold 0.09 of noise. ± is over tasks, "
        "of means over seeds, and the difference is paired. Published: see "
        "`benchmarks/function_families.py`.\n\n"
    )
    header = ["learner", "error", "median", "seeds", "published"]
    header += ["largest share of MAML's", "below MAML by"]
    families = list(dict.fromkeys(r["family"] for r in results))
    means = {(r["learner"], r["family"]): f"{r['mean']:.3f}" for r in results}
    each = [[name, *(means[name, f] for f in families[1:])] for name in names]
    tables = [_markdown(header, rows), _markdown(["error", *families[1:]], each)]
    return text + "\n".join([*tables, _picture(path)])


def _neural_processes(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    of_curves = [r for r in results if r["part"] == "curves"]
    rows = [
        [
            r["learner"],
            _interval(r, 3),
            _interval(r["gap"], 3) if "gap" in r else "",
            f"{100 * r['gap']['share_of_tasks_above']:.1f} %" if "gap" in r else "",
            f"{r['mse']:.4f}",
        ]
        for r in of_curves
    ]
    header = ["learner", "log likelihood", "gap", "tasks above it", "squared error"]
    low, high = settings["shot"]
    parts = [
        "Log likelihood of a target in nats, after "
        f"{low} to {high} points of a draw of a Gaussian process (RBF kernel, length "
        f"scale {settings['length_scale']:g}, noise {settings['noise']:g}), "
        f"{settings['num_test_tasks']:,} test tasks of {settings['num_queries']} "
        "targets, one seed; and by how much it is below that of the exact posterior, "
        "target by target, paired.\n",
        _markdown(header, rows),
        _picture(path),
    ]
    of_images = [r for r in results if r["part"] == "images"]
    if of_images:
        pixels = settings["shown_pixels"]
        found = {(r["data"], r["learner"], r["pixels"]): r for r in of_images}
        rows = [
            [data, name, *(_interval(found[data, name, p], 3) for p in pixels)]
            for data, name in dict.fromkeys(
                (r["data"], r["learner"]) for r in of_images
            )
        ]
        header = ["images", "learner", *(f"{p} pixels" for p in pixels)]
        parts += [
            "Log likelihood of a pixel in nats, at most 1.38, after some pixels of "
            f"28 x 28, {settings['num_test_images']} images of each set; trained on "
            "other characters of Omniglot:\n",
            _markdown(header, rows),
            _picture(path.with_stem(f"{path.stem}-images")),
        ]
    return "\n".join(parts)


def _gradients(records: Named) -> str:
    [(path, record)] = records
    parts = []
    for case in record["results"]:
        parts.append(
            f"Case `{case['case']}` of `benchmarks/gradients.py`, "
            f"{case['num_tasks']} tasks a step, {case['repeats']} estimates; ± over "
            "estimates:\n"
        )
        rows = [
            [
                r["name"],
                f"{r['cosine']:.3f} ± {r['cosine_half_width']:.3f}",
                f"{r['cosine_of_mean']:.3f}",
                f"{r['norm']:.3g}",
                f"{1000 * r['seconds']:.3g}",
                f"{r['memory'] / 2**20:.3g}",
            ]
            for r in case["rows"]
        ]
        header = ["estimator", "cosine", "of the mean", "norm", "ms a step", "MiB"]
        parts.append(_markdown(header, rows))
        parts.append(_picture(path.with_stem(f"gradients-{case['case']}")))
    return "\n".join(parts)


def _molecules(records: Named) -> str:
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
                    _interval(r, 1, 100),
                    "" if seeds is None else f"{100 * seeds:.1f}",
                    "" if published is None else "{:.1f} ({:.1f})".format(*published),
                ]
                for baseline in baselines:
                    above = r["above"].get(baseline)
                    row.append("")
                    if above is not None:
                        width = 100 * above["half_width_over_assays"]
                        row[-1] = (
                            f"{_interval(above, 1, 100)} ({width:.1f}; "
                            f"{above['better_on']} of {len(assays)})"
                        )
                rows.append(row)
        above = [f"above {baseline}" for baseline in baselines]
        header = ["method", "ROC-AUC", "seeds", "published", *above]
        parts.append(_markdown(header, rows))
        rows = [
            [
                method,
                *(
                    _interval(r, 1, 100)
                    for r in results
                    if r["method"] == method and r["assay"] != "all"
                ),
            ]
            for method in dict.fromkeys(r["method"] for r in results)
        ]
        parts.append(_markdown(["each assay", *assays], rows))
    return "\n".join(parts)


def _domains(records: Named) -> str:
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    parts = [
        "Accuracy in percent, and the rank in brackets, of learners that were trained "
        f"on Omniglot and glyphs for {settings['outer_steps']:,} steps; all other "
        "domains are new to them. Ranks as on Meta-Dataset's leaderboard: those "
        "whose paired difference from the best has a 95 % interval that holds 0 share "
        "a rank, and so on with the rest. All learners are inductive and answered the "
        f"same tasks: {settings['num_test_tasks']} of each domain, "
        f"{settings['num_variable_tasks']} with variable way and shot.\n"
    ]
    for row in results:
        parts.append(f"{row['protocol'][0].upper()}{row['protocol'][1:]}:\n")
        learners = row["learners"]
        rows = [
            [
                name,
                *(
                    f"{100 * mean:.1f} ± {100 * width:.1f} ({rank:g})"
                    for mean, width, rank in zip(
                        found["mean"],
                        found["half_width_95"],
                        found["rank"],
                        strict=True,
                    )
                ),
                f"{found['average_rank']:.2f}",
            ]
            for name, found in sorted(
                learners.items(), key=lambda item: item[1]["average_rank"]
            )
        ]
        parts.append(_markdown(["learner", *row["domains"], "average rank"], rows))
    parts.append(_picture(path))
    return "\n".join(parts)


SECTIONS: list[tuple[str, str, Callable[[Named], str]]] = [
    ("Sinusoids after one and ten inner steps", "sinusoid-*", _sinusoids),
    ("Hypergradient descent", "hypergradient-*", _hypergradient),
    ("Learned optimizers on random quadratics", "quadratics", _quadratics),
    ("A meta neural network on synthetic tables", "tables-*", _tables),
    ("Decision trees by meta-features", "recommend-trees", _recommend),
    ("A network fitted to a prior over tables", "prior-fitted", _prior_fitted),
    ("Maps of tasks", "task-map", _task_map),
    ("Embeddings with heads", "embeddings", _embeddings),
    ("Networks that learn as they read", "readers", _readers),
    ("Sequences of drawings", "memory-sequences-*", _memory_sequences),
    ("The cost of a long support set", "stream-cost", _stream_cost),
    ("Tasks on embeddings computed once", "cached-features", _cached_features),
    ("A support vector machine with learned numbers", "kernel-svm", _kernel_svm),
    ("Functions of six families", "function-families", _function_families),
    ("Neural processes", "neural-processes", _neural_processes),
    ("Soft decision trees, hardened", "soft-trees", _soft_trees),
    ("Parts of MAML++", "ablation", _ablation),
    ("Sequences: an LSTM that generates an LSTM", "sequences", _sequences),
    ("Several domains, variable way and shot", "domains", _domains),
    ("Few-shot assays of molecules", "molecules-*", _molecules),
    ("Estimators of the outer gradient", "gradients", _gradients),
]


def _interval(numbers: Record, digits: int, unit: float = 1.0) -> str:
    if numbers["mean"] is None:
        return "not finite"
    mean, width = unit * numbers["mean"], unit * numbers["half_width"]
    if abs(mean) >= 1000:
        return f"{mean:.1e} ± {width:.1e}"
    return f"{mean:.{digits}f} ± {width:.{digits}f}"


def _signs(found: Record) -> str:
    return f"{found['better']} to {found['worse']}, p = {found['sign_test_p']:.1g}"


def _picture(path: pathlib.Path) -> str:
    picture = path.with_suffix(".png")
    if not picture.exists():
        return ""
    return f"![{picture.stem}](results/{picture.name})\n"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()

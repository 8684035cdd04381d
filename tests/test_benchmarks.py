"""Benchmarks run from their settings to a JSON file, from which a page is made."""

import dataclasses
import gzip
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from benchmarks import (
    ablation,
    cached_features,
    domains,
    embeddings,
    engine,
    function_families,
    gradients,
    images,
    kernel_svm,
    memory_sequences,
    molecules,
    neural_processes,
    omniglot,
    prior_fitted,
    quadratics,
    readers,
    recommend_trees,
    record,
    results_page,
    sequences,
    sinusoid,
    soft_trees,
    speed,
    stream_cost,
    tables,
    task_map,
)
from benchmarks.peers.items import select_items
from metajax.tasks.tables.tables import Table


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run folders and results go into a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")


def read_result(folder):
    (path,) = (folder / "results").glob("*.json")
    return json.loads(path.read_text())


def test_sinusoid(tmp_path):
    sinusoid.main(sinusoid.Settings(steps=2, num_test_tasks=3))
    result = read_result(tmp_path)
    assert [row["inner_steps"] for row in result["results"]] == list(range(11))
    assert result["settings"]["seed"] == 0
    assert {"command", "revision", "device", "versions"} <= set(result)


@pytest.mark.parametrize("name", ["fomaml", "anil", "meta-sgd", "cavia"])
def test_other_learners_on_sinusoids(name):
    settings = sinusoid.Settings(learner=name, inner_rate=0.5)
    learner = sinusoid.make_learner(settings, eval_steps=2)
    task = metajax.tasks.sinusoid()(jax.random.key(0))
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    path = jax.eval_shape(learner.adapt_steps, meta_params, task.support)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(path)} == {3}


@pytest.mark.parametrize("kind", omniglot.NAMES)
def test_learners_on_omniglot(kind):
    settings = kind()
    assert omniglot.result_name(settings).count("-seed0") == 1
    learner = settings.build(settings.model())
    settings.optimizer()
    tasks = metajax.tasks.glyphs(
        way=settings.way, shot=settings.train_shot, num_queries=1
    )
    task = jax.eval_shape(tasks, jax.random.key(0))
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    loss, _ = jax.eval_shape(learner.loss, meta_params, task)
    assert loss.shape == ()


def test_results_name_the_switches_that_are_not_as_usual():
    settings = omniglot.MamlPlusPlus(per_step_rates=False, way=20, steps=7)
    expected = "omniglot-maml-plus-plus-20w1s-per-step-rates-False-seed0"
    assert omniglot.result_name(settings) == expected


def test_quadratics(tmp_path, monkeypatch):
    monkeypatch.setattr(quadratics, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quadratics, "RATES", quadratics.RATES[8:11])
    quadratics.main(
        quadratics.Settings(
            dim=3,
            inner_steps=4,
            piece=2,
            outer_steps=2,
            tasks_per_step=2,
            num_tuning_tasks=3,
            num_test_tasks=5,
            rate_steps=(2,),
        )
    )
    *tuned, found = read_result(tmp_path)["results"]
    assert [row["optimizer"] for row in tuned] == ["LSTM", *quadratics.BASELINES]
    assert found["difference"] < 1e-5
    assert (tmp_path / "results/quadratics.png").exists()
    assert "Nesterov" in results_page.page(tmp_path / "results")


def test_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "REGULARISATIONS", [0.1, 1.0])
    tables.main(
        tables.Settings(
            family=1, outer_steps=2, hidden=4, num_test_tasks=3, num_tuning_tasks=1
        )
    )
    rows = read_result(tmp_path)["results"]
    assert [row["method"] for row in rows[:2]] == ["maml", "meta-sgd"]
    assert len(rows) == 6
    difference = rows[0]["mean"] - rows[2]["mean"]
    assert rows[2]["maml_is_better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert "Meta-SGD is better by" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_recommend_trees(tmp_path):
    settings = recommend_trees.Settings(
        num_tables=3, tasks_per_table=2, num_neighbors=(1, 2)
    )
    recommend_trees.main(settings)
    rows = read_result(tmp_path)["results"]
    assert {row["trials"] for row in rows} == set(recommend_trees.TRIALS)
    assert all(0 <= row["mean"] <= 1 for row in rows)
    assert "lower than random" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_cached_features(tmp_path, monkeypatch):
    makers = {"prototypical": metajax.learners.prototypical}
    monkeypatch.setattr(cached_features, "LEARNERS", makers)
    monkeypatch.setattr(cached_features, "omniglot", few_characters)
    monkeypatch.setattr(
        cached_features, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    cached_features.main(cached_features.Settings(num_tasks=3, repeats=1))
    first, one, five = read_result(tmp_path)["results"]
    assert first["images"] == 8 * 4 * 20
    assert [one["shot"], five["shot"]] == [1, 5]
    assert "| prototypical |" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_embeddings(tmp_path, monkeypatch):
    """Differences are those of means, as all learners have the same tasks."""
    monkeypatch.setattr(embeddings, "omniglot", few_characters)
    monkeypatch.setattr(
        embeddings, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    monkeypatch.setattr(embeddings, "PROTOCOLS", ((5, 1),))
    settings = embeddings.Settings(
        learners=("ridge",), outer_steps=2, way=5, num_queries=1, num_test_tasks=3
    )
    embeddings.main(settings)
    reference, ridge = read_result(tmp_path)["results"]
    difference = ridge["mean"] - reference["mean"]
    assert ridge["better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert "| ridge | inductive |" in results_page.page(tmp_path / "results")


def few_characters(split, **protocol):
    return metajax.tasks.omniglot(split, **protocol).take(range(8))


@pytest.mark.usefixtures("data_dir")
def test_readers(tmp_path, monkeypatch):
    """All on embeddings of one network, beside the one that made them."""
    monkeypatch.setattr(readers, "omniglot", few_characters)
    monkeypatch.setattr(
        readers, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    makers = {
        "mm_net": lambda: metajax.learners.mm_net(
            metajax.models.identity(), way=5, slots=5
        )
    }
    monkeypatch.setattr(readers, "MAKERS", makers)
    monkeypatch.setattr(readers, "STEPS", {"mm_net": 1})
    settings = readers.Settings(
        learners=("mm_net",),
        embedding_way=5,
        embedding_steps=1,
        tasks_per_step=1,
        num_queries=1,
        num_test_tasks=2,
    )
    readers.main(settings)
    rows = read_result(tmp_path)["results"]
    assert [(r["learner"], r["shot"]) for r in rows] == [
        ("prototypical", 1),
        ("prototypical", 5),
        ("mm_net", 1),
        ("mm_net", 5),
    ]
    difference = rows[2]["mean"] - rows[0]["mean"]
    assert rows[2]["better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    page = results_page.page(tmp_path / "results")
    assert "| mm_net, 1 steps | inductive |" in page
    with pytest.raises(ValueError, match="`learner` must be one of mm_net, got 'no'"):
        readers.main(readers.Settings(learners=("no",)))


@pytest.mark.usefixtures("data_dir")
def test_memory_sequences(tmp_path, monkeypatch):
    """Small learners, one of them with reads to draw."""
    monkeypatch.setattr(memory_sequences, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(memory_sequences, "omniglot", few_characters)
    sizes = {"way": 5, "hidden_size": 4}
    makers = {
        "lstm": lambda: metajax.learners.lstm_learner(
            metajax.models.identity(), **sizes
        ),
        "mann": lambda: metajax.learners.mann(
            metajax.models.identity(), slots=6, width=3, heads=2, **sizes
        ),
    }
    monkeypatch.setattr(memory_sequences, "MAKERS", makers)
    settings = memory_sequences.Settings(
        learners=("lstm", "mann"), outer_steps=1, tasks_per_step=1, num_test_tasks=50
    )
    memory_sequences.main(settings)
    lstm, mann = read_result(tmp_path)["results"]
    assert len(lstm["mean"]) == 10
    assert "published" not in lstm
    assert mann["published"]["2"] == 0.828
    assert (tmp_path / "results/memory-sequences-vinyals.png").exists()
    assert (tmp_path / "results/memory-sequences-reads.png").exists()
    assert "| mann, published | 36.4 | 82.8 |" in results_page.page(
        tmp_path / "results"
    )


def test_what_was_made_for_the_same_settings_is_kept(tmp_path):
    path, made = tmp_path / "run" / "numbers.pickle", []

    def make():
        made.append(len(made))
        return {"numbers": np.full(3, len(made))}

    first, again = (record.kept(path, {"steps": 5}, make) for _ in range(2))
    np.testing.assert_array_equal(first["numbers"], again["numbers"])
    assert made == [0]
    other = record.kept(path, {"steps": 6}, make)
    np.testing.assert_array_equal(other["numbers"], 2)
    assert [file.name for file in path.parent.iterdir()] == ["numbers.pickle"]


def test_drawings_are_shifted_as_a_whole(key):
    images = jnp.zeros((3, 20, 20, 1)).at[:, 9:11, 9:11].set(1.0)
    moved = memory_sequences.moved(key, images)
    np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 4, atol=1e-5)
    places = [np.argwhere(np.asarray(image[..., 0]) > 0.5)[0] - 9 for image in moved]
    assert np.abs(places).max() <= memory_sequences.MOST_SHIFT
    assert len({tuple(place) for place in places}) > 1


def test_drawings_are_turned_about_their_middle(key):
    images = jnp.zeros((40, 20, 20, 1)).at[:, 4:16, 9:11].set(1.0)  # upright bars
    moved = np.asarray(memory_sequences.moved(key, images, 0.3))[..., 0]
    rows, columns = np.indices((20, 20)) - 9.5
    mass = moved.sum(axis=(1, 2))
    middle = [(moved * at).sum(axis=(1, 2)) / mass for at in (rows, columns)]
    assert np.abs(middle).max() < memory_sequences.MOST_SHIFT + 0.05
    y = rows[None] - middle[0][:, None, None]
    x = columns[None] - middle[1][:, None, None]
    xx, xy, yy = ((moved * of).sum(axis=(1, 2)) for of in (x * x, x * y, y * y))
    angles = np.arctan2(2 * xy, yy - xx) / 2  # of the main axis
    assert 0.25 < np.abs(angles).max() < 0.31
    assert angles.min() < -0.1 < 0.1 < angles.max()


def test_stream_cost(tmp_path, monkeypatch):
    """Every learner is built, at one small length."""
    monkeypatch.setattr(stream_cost, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    support = metajax.Examples(jnp.zeros((6, 64)), jnp.arange(6) % 5)
    for make in stream_cost.MAKERS.values():
        learner = make(6)
        params = jax.eval_shape(
            learner.init, jax.random.key(0), metajax.Task(support, support)
        )
        jax.eval_shape(learner.adapt, params, support)
    settings = stream_cost.Settings(
        learners=("prototypical", "lstm"), lengths=(4, 6), repeats=1
    )
    stream_cost.main(settings)
    rows = read_result(tmp_path)["results"]
    assert len(rows) == 4
    assert all(row["adapt_s"] > 0 and row["answer_s"] > 0 for row in rows)
    assert (tmp_path / "results/stream-cost.png").exists()
    assert "| lstm |" in results_page.page(tmp_path / "results")


def test_prior_fitted(tmp_path, monkeypatch):
    """On a table that any of them can learn, but not in one step."""
    x = np.random.default_rng(0).normal(size=(260, 3))
    names = ("a", "b", "c"), ("0", "1"), "easy"
    table = metajax.tasks.tables.tables.Table(x, (x[:, 0] > 0).astype(int), *names)
    wide = metajax.tasks.tables.tables.Table(
        np.zeros((260, 40)), table.y, tuple(map(str, range(40))), *names[1:]
    )
    small = metajax.tasks.tables.tables.Table(x[:200], table.y[:200], *names)
    assert prior_fitted.usable([wide, small, table]) == [table]
    monkeypatch.setattr(prior_fitted, "read_tables", lambda count: [table, table])
    monkeypatch.setattr(prior_fitted, "usable", lambda tables: tables)
    settings = prior_fitted.Settings(
        size=8,
        layers=1,
        outer_steps=1,
        tasks_per_step=1,
        tasks_per_table=2,
        num_orders=2,
    )
    prior_fitted.main(settings)
    rows = {r["method"]: r for r in read_result(tmp_path)["results"]}
    assert rows["logistic regression"]["mean"] > 0.9
    assert rows["logistic regression"]["mean_rank"] < rows["prior-fitted"]["mean_rank"]
    higher = rows["logistic regression"]["prior_fitted_is_higher_by"]["mean"]
    difference = rows["prior-fitted"]["mean"] - rows["logistic regression"]["mean"]
    assert higher == pytest.approx(difference)
    assert "| random forest |" in results_page.page(tmp_path / "results")


def test_prior_fitted_undoes_the_names_of_classes(key):
    """A learner that says what it read: any order of names gives the same answer."""

    def predict(adapted, inputs, **_):
        return jnp.broadcast_to(10.0 * adapted[None], (len(inputs), adapted.size))

    def adapt(meta_params, support, **_):
        # Columns and classes that the table lacks must stay where they are.
        is_usual = jnp.all(support.x[:, 2:] == 0) & jnp.all(support.y < 4)
        counts = jnp.mean(jax.nn.one_hot(support.y, prior_fitted.WAY), axis=0)
        return counts * is_usual

    learner = metajax.Learner(None, adapt, predict, None)
    x = jnp.zeros((6, prior_fitted.COLUMNS)).at[:, :2].set(5.0)
    support = metajax.Examples(x, jnp.asarray([3, 3, 3, 3, 1, 0]))
    task = metajax.Task(support, support)
    for orders in (1, 3):
        found = prior_fitted.ask(learner, orders, (), task, (2, 4), key)
        np.testing.assert_array_equal(found, 3)


def test_prior_fitted_knows_the_matrices_of_its_layers(key):
    tasks = metajax.tasks.tabular_prior(rows=5, columns=prior_fitted.COLUMNS)
    learner = prior_fitted.build(prior_fitted.Settings(size=8, layers=2))
    meta_params = learner.init(key, tasks(key))
    axes = jax.tree.leaves(
        prior_fitted.matrices(meta_params),
        is_leaf=lambda leaf: leaf is None or hasattr(leaf, "reduction_axis"),
    )
    leaves = jax.tree.leaves(meta_params)
    found = [(x.shape, *a) for x, a in zip(leaves, axes, strict=True) if a]
    of_layer = {
        ((8, 3, 4, 2), (0,), (1, 2, 3)),
        ((4, 2, 8), (0, 1), (2,)),
        ((8, 32), (0,), (1,)),
        ((32, 8), (0,), (1,)),
    }
    assert set(found) == of_layer
    assert len(found) == 2 * len(of_layer)


def test_prior_fitted_takes_all_orders(key):
    found = jax.vmap(lambda k: prior_fitted._shuffled(k, 5, 3))(
        jax.random.split(key, 200)
    )
    orders = {tuple(order) for order in np.asarray(found)}
    assert orders == {(*o, 3, 4) for o in itertools.permutations(range(3))}


@pytest.mark.usefixtures("data_dir")
def test_task_map(tmp_path, monkeypatch):
    """All of it but meta-features and trees, which have tests of their own."""
    rng = np.random.default_rng(0)
    small = []
    for number in range(4):
        x, y = rng.normal(size=(80, 3)), np.arange(80) % 2
        names = ("a", "b", "c"), ("0", "1"), f"t{number}"
        small.append(metajax.tasks.tables.tables.Table(x, y, *names))
    described = rng.normal(size=(8, 28))
    scores = rng.normal(size=(8, len(recommend_trees.CONFIGURATIONS)))
    labels = np.repeat([table.name for table in small], 2)
    known = recommend_trees.Measured(labels, labels, described, scores)
    monkeypatch.setattr(recommend_trees, "measure", lambda *arguments: known)
    monkeypatch.setattr(task_map, "read_tables", lambda num: small)
    monkeypatch.setattr(task_map, "describe", lambda t, drawn: described[: len(drawn)])
    monkeypatch.setattr(task_map, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        task_map,
        "conv4",
        lambda **kw: metajax.models.mlp(3, hidden_sizes=(4,), normalization="none"),
    )
    monkeypatch.setattr(task_map, "calibrate", lambda model, params, *others: params)
    settings = task_map.Settings(
        probe_steps=2,
        tasks_per_domain=3,
        tasks_per_alphabet=2,
        num_alphabets=2,
        folds=2,
        samples_per_table=2,
        outer_steps=2,
        tasks_per_step=2,
        num_pairs=2,
        tasks_per_table=2,
        num_neighbors=(1,),
    )
    task_map.main(settings)
    rows = read_result(tmp_path)["results"]
    found = {(r["of"], r["representation"]): r for r in rows if "of" in r}
    assert len(found) == 4 + 4 + 5
    assert found["domain", "Task2Vec"]["chance"] == pytest.approx(1 / 6)
    assert set(found["table", "Dataset2Vec"]["each"]) == set(labels)
    # Reference and tested samples are described alike here, and tables as well.
    assert found["table", "meta-features"]["mean"] == 0.5
    warm = {(r["trials"], r["features"]): r for r in rows if r["part"] == "warm start"}
    difference = warm[1, "meta-features"]["mean"] - warm[1, "both"]["mean"]
    lower = warm[1, "both"]["lower_than_meta_features_by"]
    assert lower["mean"] == pytest.approx(difference, abs=1e-9)
    assert (tmp_path / "results/task-map.png").exists()
    assert "| mean embedding |" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_kernel_svm(tmp_path):
    settings = kernel_svm.Settings(
        folds=2, tasks_per_table=2, num_tables=2, outer_steps=2, num_family_tasks=4
    )
    kernel_svm.main(settings)
    rows = read_result(tmp_path)["results"]
    folds = [row for row in rows if "fold" in row]
    assert sum((row["tables"] for row in folds), []) != []
    assert len(folds[0]["numbers"]["learned"]["relevance"]) == 4
    folded = [row for row in rows if row["part"] == "tables" and "fold" not in row]
    means = {row["method"]: row for row in folded}
    difference = means["learned"]["mean"] - means["default"]["mean"]
    found = means["default"]["learned_is_higher_by"]
    assert found["mean"] == pytest.approx(difference, abs=1e-9)
    assert "| mix, not learned |" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_soft_trees(tmp_path, monkeypatch):
    monkeypatch.setattr(soft_trees, "RESULTS", tmp_path / "results")
    settings = soft_trees.Settings(
        folds=2,
        tasks_per_table=12,
        num_tables=2,
        depth=1,
        inner_steps=1,
        outer_steps=2,
        tasks_per_step=2,
        drawn="analcatdata_boxing1",
    )
    soft_trees.main(settings)
    rows = read_result(tmp_path)["results"]
    by_method = {r["method"]: r for r in rows if r["part"] == "methods"}
    cart = by_method["CART, same depth"]
    difference = by_method["learned"]["mean"] - cart["mean"]
    assert cart["learned_is_higher_by"]["mean"] == pytest.approx(difference)
    tested = [r["tables"] for r in rows if r["part"] == "fold"]
    assert len(tested) == 4
    assert len({name for names in tested for name in names}) == 2
    assert (tmp_path / "results/soft-trees.png").exists()
    assert "higher than CART by" in results_page.page(tmp_path / "results")


def test_soft_trees_keep_five_classes():
    y = np.repeat(np.arange(7), [3, 9, 4, 8, 5, 9, 6])
    x = np.arange(len(y))[:, None]
    table = Table(x, y, ("place",), tuple("abcdefg"))
    kept = soft_trees.five_classes(table)
    assert kept.class_names == ("b", "d", "e", "f", "g")
    np.testing.assert_array_equal(np.bincount(kept.y), [9, 8, 5, 9, 6])
    assert set(y[kept.x[:, 0].astype(int)]) == {1, 3, 4, 5, 6}


def test_sequences(tmp_path):
    settings = sequences.Settings(
        num_seeds=2,
        hidden=3,
        encoder_hidden=3,
        inner_steps=1,
        outer_steps=2,
        tasks_per_step=2,
        scratch_rates=(0.01,),
        scratch_steps=(1, 2),
        num_test_tasks=3,
    )
    sequences.main(settings)
    rows = read_result(tmp_path)["results"]
    assert len(rows) == 5 * (1 + settings.num_seeds) + 1
    ours, maml = (
        [r["mean"] for r in rows if r["learner"] == name and "seed" in r]
        for name in ("generator", "maml")
    )
    found = [r["difference"] for r in rows if r["learner"] == "maml" and "seed" in r]
    assert found == pytest.approx([a - b for a, b in zip(ours, maml, strict=True)])
    assert "generator less this" in results_page.page(tmp_path / "results")


def test_function_families(tmp_path, monkeypatch):
    """With learners that compile at once; its own are only built."""
    monkeypatch.setattr(function_families, "RESULTS", tmp_path / "results")
    settings = function_families.Settings(
        num_seeds=2, inner_steps=1, outer_steps=1, tasks_per_step=2, num_test_tasks=3
    )
    task = metajax.tasks.regression_families()(jax.random.key(0))
    for learner in function_families.learners(settings).values():
        meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
        jax.eval_shape(learner.loss, meta_params, task)
    few = {
        name: metajax.learners.maml(
            metajax.models.mlp(1, hidden_sizes=()),
            optax.sgd(0.001),
            inner_steps=steps,
            objective=metajax.objectives.squared_error,
        )
        for steps, name in enumerate(("maml", "arml"))
    }
    monkeypatch.setattr(function_families, "learners", lambda settings: few)
    function_families.main(settings)
    rows = {(r["learner"], r["family"]): r for r in read_result(tmp_path)["results"]}
    assert len(rows) == 2 * 7
    ours, maml = rows["arml", "all"], rows["maml", "all"]
    assert ours["num_tasks"] == 6 * 3
    families = [rows["arml", f]["mean"] for f in function_families.FAMILIES]
    assert ours["mean"] == pytest.approx(np.mean(families), rel=1e-6)
    below = maml["mean"] - ours["mean"]
    assert ours["below_maml"]["mean"] == pytest.approx(below, rel=1e-4)
    ratios = np.divide(ours["seeds"], maml["seeds"])
    assert ours["of_maml"] == pytest.approx(ratios.tolist())
    assert (tmp_path / "results/function-families.png").exists()
    assert "largest share of MAML's" in results_page.page(tmp_path / "results")


def test_neural_processes(tmp_path, monkeypatch):
    """With learners and images that compile at once; its own are only built."""
    monkeypatch.setattr(neural_processes, "RESULTS", tmp_path / "results")
    settings = neural_processes.Settings(
        num_queries=4,
        shot=(1, 3),
        outer_steps=1,
        tasks_per_step=2,
        num_test_tasks=3,
        image_steps=1,
        image_tasks_per_step=2,
        image_shot=(1, 3),
        image_queries=4,
        shown_pixels=(5,),
        num_test_images=2,
    )
    task = neural_processes.curves(settings)(jax.random.key(0))
    for build in (neural_processes.learners, neural_processes.image_learners):
        for learner in build(settings).values():
            meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
            jax.eval_shape(learner.loss, meta_params, task)

    def few(settings):
        del settings
        return {
            name: metajax.learners.conditional_np(
                code_size=size, encoder_layers=1, decoder_layers=1
            )
            for size, name in enumerate(("one", "other"), start=2)
        }

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5, 1), np.uint8)
    table = metajax.tasks.images.class_table.class_table(images)
    monkeypatch.setattr(neural_processes, "learners", few)
    monkeypatch.setattr(neural_processes, "image_learners", few)
    monkeypatch.setattr(neural_processes, "omniglot", lambda split: table)
    monkeypatch.setitem(neural_processes.READERS, "mnist", lambda: table)
    neural_processes.main(settings)
    rows = read_result(tmp_path)["results"]
    exact, one, other = (r for r in rows if r["part"] == "curves")
    assert exact["learner"] == "exact posterior"
    for row in (one, other):
        gap = exact["mean"] - row["mean"]
        assert row["gap"]["mean"] == pytest.approx(gap, rel=1e-4)
    assert one["mean"] != other["mean"]
    of_images = [r for r in rows if r["part"] == "images"]
    places = {(r["data"], r["pixels"], r["learner"]) for r in of_images}
    assert len(places) == len(of_images) == 2 * 2
    for picture in ("neural-processes", "neural-processes-images"):
        assert (tmp_path / f"results/{picture}.png").exists()
    page = results_page.page(tmp_path / "results")
    assert "below that of the exact posterior" in page
    assert "neural-processes-images.png" in page


def test_molecules(tmp_path, monkeypatch):
    """On a table of 90 molecules, where one assay decides what the others say."""
    generator = np.random.default_rng(0)
    is_active = generator.random(90) < 0.5
    lines = [",".join(["smiles", *(f"assay {i}" for i in range(27))])]
    for number, active in enumerate(is_active):
        cells = ["" if number % 9 == i % 9 else str(int(active)) for i in range(27)]
        lines.append(",".join(["C" * (number + 1) + "NO"[int(active)], *cells]))
    (tmp_path / "molecules").mkdir()
    with gzip.open(tmp_path / "molecules/sider.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path))
    settings = molecules.Settings(
        data="sider",
        fingerprint="ngrams",
        num_draws=2,
        num_seeds=2,
        num_tuning_draws=1,
        hidden=4,
        outer_steps=(1,),
        tasks_per_step=2,
        inner_steps=1,
        regularisations=(1.0,),
        neighbors=(1, 3),
        trees=2,
    )
    problem, tuning = molecules.problems(settings)
    assert not set(problem.train_assays) & set(problem.test_assays)
    assert not set(tuning.test_assays) & set(problem.test_assays)
    assert set(tuning.train_assays + tuning.test_assays) == set(problem.train_assays)
    apart, _ = molecules.problems(dataclasses.replace(settings, apart=True))
    is_known = [
        np.any(table.labels >= 0, axis=1) for table in (apart.train, apart.test)
    ]
    np.testing.assert_array_equal(is_known[0], ~is_known[1])

    few = {"prototypical": molecules.learners(settings)["prototypical"]}
    monkeypatch.setattr(molecules, "learners", lambda settings: few)
    molecules.main(settings)
    result = read_result(tmp_path)
    rows = {(row["method"], row["assay"]): row for row in result["results"]}
    assert rows["frequent hitter", "all"]["mean"] == 1
    ours, forest = rows["prototypical", "all"], rows["random forest", "all"]
    above = ours["above"]["random forest"]["mean"]
    assert above == pytest.approx(ours["mean"] - forest["mean"])
    assert len(rows) == 5 * (1 + len(problem.test_assays))
    assert set(result["settings"]["chosen"]) == {"nearest neighbours"}
    assert "above frequent hitter" in results_page.page(tmp_path / "results")


@pytest.mark.parametrize("support", [[0, 1], [1, 0]])
def test_scores_of_molecules_follow_the_support(support):
    """The query is one of two molecules without a common bit."""
    bits = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint8)
    problem = molecules.Problem(None, (), None, (), bits, 1)
    queries = np.array([0, 1])
    for make in (molecules.nearest, molecules.logistic, molecules.forest):
        score = make(1, problem, 0)
        inactive, active = score(np.array(support), queries)[support]
        assert active >= inactive
        assert make is molecules.forest or active > inactive


@pytest.mark.usefixtures("data_dir")
def test_ablation(tmp_path, monkeypatch):
    model = metajax.models.mlp(5, hidden_sizes=(3,), normalization="batch")
    monkeypatch.setattr(omniglot.MamlPlusPlus, "model", lambda self: model)
    kept = ("all", "none (MAML)")
    monkeypatch.setattr(
        ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in kept}
    )
    ablation.main(ablation.Settings(outer_steps=2, tasks_per_step=2, num_test_tasks=3))
    full, none = read_result(tmp_path)["results"]
    assert (full["variant"], none["variant"]) == kept
    assert none["worse_by"]["mean"] == pytest.approx(full["mean"] - none["mean"])
    assert "worse than all by" in results_page.page(tmp_path / "results")


def test_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    gradients.main(
        gradients.Settings(outer_steps=1, num_tasks=2, repeats=2, num_pairs=2)
    )
    cases = read_result(tmp_path)["results"]
    assert [case["case"] for case in cases] == ["sinusoid", "quadratic"]
    names = [row["name"] for row in cases[0]["rows"]]
    assert {"exact", "implicit", "proximal, exact", "PES"} <= set(names)
    assert "truncated" in results_page.page(tmp_path / "results")


@pytest.mark.usefixtures("data_dir")
def test_prototypical_on_glyphs_and_then_real_images(tmp_path):
    settings = omniglot.Prototypical(source="glyphs", way=3, steps=2, num_test_tasks=2)
    omniglot.main(settings)
    rows = read_result(tmp_path)["results"]
    assert {row["images"] for row in rows} == {"omniglot", "devanagari", "mnist"}
    assert {row["protocol"] for row in rows} == {"inductive"}
    assert len(rows) == 4 + 2 + 2


@pytest.mark.usefixtures("data_dir")
def test_domains(tmp_path, monkeypatch):
    def make_model(num_outputs, *, normalization, **_):
        return metajax.models.mlp(
            num_outputs or 4, hidden_sizes=(3,), normalization=normalization
        )

    # As few programs as show all paths.
    monkeypatch.setattr(domains, "conv4", make_model)
    monkeypatch.setattr(domains, "fit_buckets", lambda *_: ((400, 100),))
    monkeypatch.setattr(domains, "PROTOCOLS", ("5-way 1-shot", "variable"))
    monkeypatch.setattr(domains, "RESULTS", tmp_path / "results")
    settings = domains.Settings(
        learners=("maml", "baseline"),
        domains=("mnist",),
        outer_steps=2,
        num_glyphs=32,
        num_test_tasks=3,
        num_variable_tasks=3,
    )
    domains.main(settings)
    rows = read_result(tmp_path)["results"]
    assert [row["protocol"] for row in rows] == list(domains.PROTOCOLS)
    assert set(rows[0]["learners"]) == set(settings.learners)
    assert set(rows[1]["learners"]) == {"baseline"}
    for row in rows:
        assert {found["protocol"] for found in row["learners"].values()} == {
            "inductive"
        }
        ranks = [found["average_rank"] for found in row["learners"].values()]
        assert sum(ranks) == len(ranks) * (len(ranks) + 1) / 2
    assert (tmp_path / "results/domains.png").exists()
    page = results_page.page(tmp_path / "results")
    assert "| learner | mnist | average rank |" in page
    # What is there already is not computed again.
    monkeypatch.setattr(domains, "train", None)
    domains.main(settings)
    assert read_result(tmp_path)["results"] == rows


@pytest.mark.parametrize("name", domains.MAKERS)
def test_learners_of_the_domains(name):
    model = metajax.models.conv4(
        5 if name == "maml" else None,
        features=8,
        pooling="maps" if name == "relation" else "max",
        normalization="layer",
    )
    learner = domains.MAKERS[name](model, 5, 10)
    task = jax.eval_shape(
        metajax.tasks.glyphs(way=5, shot=2, num_queries=1), jax.random.key(0)
    )
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    loss, _ = jax.eval_shape(learner.loss, meta_params, task)
    assert loss.shape == ()


@pytest.mark.usefixtures("data_dir")
def test_images_are_grey_and_of_one_size():
    tables = images.read(images.READERS)
    classes = {name: len(table.counts) for name, table in tables.items()}
    assert classes == {
        "omniglot": 423,
        "devanagari": 46,
        "mnist": 10,
        "sign digits": 10,
        "clothing": 10,
        "cifar-10": 10,
    }
    assert {table.images.shape[2:] for table in tables.values()} == {(28, 28, 1)}
    few = images.at_most(tables["clothing"], 300)
    np.testing.assert_array_equal(
        few.counts, np.minimum(tables["clothing"].counts, 300)
    )
    assert few.images.shape[1] == 300
    assert images.at_most(tables["sign digits"], 500).images.shape[1] == 500


def test_engine_describes_the_program_of_each_device(tmp_path, monkeypatch):
    """On the smallest work, in this process and on its one device."""
    (small,) = select_items(("W3 1 inner",))
    monkeypatch.setattr(engine, "item_of", lambda inner_steps: small)
    monkeypatch.setattr(engine, "SIMULATED", (1, 1))
    monkeypatch.setattr(engine, "apart", lambda function, *args: function(*args))
    engine.main(engine.Settings(("scaling",), rounds=1))
    one, same = read_result(tmp_path)["results"]
    assert one["efficiency"] == same["efficiency"] == 1
    assert one["all_reduces"] == one["bytes_reduced"] == same["loss_difference"] == 0
    assert "1.00" in speed.page(tmp_path / "results")


def test_engine_refuses_an_unknown_part():
    with pytest.raises(
        ValueError, match="among start, peak, runs, precision, scaling; got 'top'"
    ):
        engine.main(engine.Settings(("top",)))


def test_page_of_results_is_what_they_give():
    remedy = "run python -m benchmarks.results_page and commit benchmarks/RESULTS.md"
    page = results_page.page(results_page.RESULTS)
    assert page == results_page.PAGE.read_text(), remedy


def test_page_of_speed_is_what_the_results_give():
    remedy = "run python -m benchmarks.speed and commit benchmarks/SPEED.md"
    assert speed.page(speed.RESULTS) == speed.PAGE.read_text(), remedy

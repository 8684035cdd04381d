"""The main job at a small size, and the second call that trains nothing."""

import io

from rich.console import Console

from metajax.main_job import Sizes, main_job

TINY = Sizes(
    features=4,
    prototypical_steps=2,
    maml_steps=2,
    scratch_steps=2,
    num_validation_tasks=2,
    num_test_tasks=3,
)


def test_compares_four_methods_and_draws(tmp_path):
    output = io.StringIO()
    console = Console(file=output, width=100)
    reports = main_job(tmp_path, sizes=TINY, console=console)
    assert len(reports) == 4
    assert {report.num_tasks for report in reports.values()} == {3}
    assert {report.protocol for report in reports.values()} == {"inductive"}
    text = output.getvalue()
    for name in reports:
        assert name in text
    for picture in ("tasks.png", "learning_curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")

    again = main_job(tmp_path, sizes=TINY, console=console)
    assert "delete it to train anew" in output.getvalue()
    for name, report in reports.items():
        assert again[name].mean == report.mean

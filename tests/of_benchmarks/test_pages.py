"""The pages are what the committed results give."""

from benchmarks import results_page, speed


def test_page_of_results_is_what_they_give():
    remedy = "run python -m benchmarks.results_page and commit benchmarks/RESULTS.md"
    page = results_page.page(results_page.RESULTS)
    assert page == results_page.PAGE.read_text(), remedy


def test_page_of_speed_is_what_the_results_give():
    remedy = "run python -m benchmarks.speed and commit benchmarks/SPEED.md"
    assert speed.page(speed.RESULTS) == speed.PAGE.read_text(), remedy

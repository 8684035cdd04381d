"""The tests of one learner follow one another, and so share its compiled programs."""


def pytest_collection_modifyitems(items):
    places = [i for i, item in enumerate(items) if item.path.name == "test_battery.py"]
    ordered = sorted(
        (items[i] for i in places), key=lambda item: item.callspec.params["name"]
    )
    for place, item in zip(places, ordered, strict=True):
        items[place] = item

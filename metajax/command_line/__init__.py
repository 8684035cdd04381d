"""The command line: constructors become subcommands, and JSON.

Read `cli.py` first. `catalogue.py` says which learners, models and tasks there are,
`forms.py` turns a signature into a form with a field for each argument, `cards.py`
reads titles and papers out of docstrings, `configuration.py` turns filled forms into
the real thing, and `main_job.py` is what runs without a command.
"""

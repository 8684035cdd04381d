"""Tasks from the rows of tables.

`tables.py` makes numbers of a file or data frame (`sources.py` has its text,
`columns.py` what a column means), and `table_tasks.py` draws tasks from them: read
these first.
`synthetic_table.py` and `tabular_prior.py` make up tables, `table_pairs.py` pairs
samples of them, and `molecules.py` reads assays of molecules.
"""

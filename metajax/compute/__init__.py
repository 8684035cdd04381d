"""What the machine does: devices, cores, and what a program costs.

Nothing here knows of learners or tasks. `devices.py` spreads the tasks of a step over a
mesh with one all-reduce, `cores.py` makes the cores of a host devices, and
`program_costs.py` counts what a traced program will do, and `bound_programs.py` lets
programs go that nobody asked for in a while. Read `devices.py` first.
"""

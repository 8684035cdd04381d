"""Functions to regress, drawn from nothing but a key.

Each file is one distribution: sinusoids (read `sinusoid.py` first), sequences of them,
families of functions, Gaussian processes with their exact answers, quadratics for tests
of theory, and the pixels of an image as a function of their place.
"""

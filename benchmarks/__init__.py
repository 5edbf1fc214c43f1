"""Measurements of this project beside its peers: recall with speed, on planted truth, in one run.

Run from the repository's root with `python -m benchmarks`; nothing in the product imports this package.
"""

"""Installs TapFinger on a Slurm controller, and takes it off again without a trace.

Every change is planned first (plan.py, pure), listed, written down before it is made, and undone from what was
written down (carry.py). Files that are not ours are never changed.
"""

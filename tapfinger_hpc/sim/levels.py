"""Names for what a policy knows of a task's speed: told on the command line, and part of every result."""

TYPES, CURVES, ORACLE = "types", "curves", "oracle"
LEVELS = (TYPES, CURVES, ORACLE)
"""``types``: the type alone, and what earlier tasks of it took; ``curves``: an estimate with its uncertainty;
``oracle``: the true times."""

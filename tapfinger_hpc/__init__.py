"""The thinking of TapFinger-HPC: state, decisions, policies, simulator, training.

Imports none of the other rooms; ``cli`` alone composes them, lazily.
"""

__version__ = "0.1.0"

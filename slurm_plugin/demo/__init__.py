"""The demo: the same stream of jobs on stock Slurm and with TapFinger, on real throw-away clusters."""

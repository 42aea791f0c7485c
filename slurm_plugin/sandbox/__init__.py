"""A real throw-away Slurm cluster with fake GPUs, for demo, tests and benchmarks."""

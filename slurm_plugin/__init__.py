"""Everything that touches Slurm: the submit hook, the selection agent, the janitor, the throw-away cluster."""

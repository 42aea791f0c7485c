"""A local Flask server that answers a cluster state with decisions. Never calls Slurm, keeps no state."""

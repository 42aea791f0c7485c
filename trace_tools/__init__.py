"""Workloads from elsewhere into training traces. Needs neither torch nor Flask."""

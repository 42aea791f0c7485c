"""Policies as compiled functions of frames, and the baselines that the learned policy is held against."""

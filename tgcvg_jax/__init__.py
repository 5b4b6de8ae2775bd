"""Augment offline RL datasets with synthetic trajectories, in JAX."""

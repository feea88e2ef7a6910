"""Uni-O4 against its baselines, offline and online."""

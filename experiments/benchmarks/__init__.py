"""How fast rlx is, as ratios of what was measured alternately in one run."""

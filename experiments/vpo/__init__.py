"""Value-incentivised preference optimisation where the optimum is known."""

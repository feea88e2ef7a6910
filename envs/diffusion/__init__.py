"""Controlled diffusions with known values: simulation, environments, closed forms."""

from envs.diffusion.control import (
    ErgodicSolution,
    Market,
    MeanVariancePolicy,
    ergodic_lq,
    ergodic_optimum,
    ergodic_value,
    gaussian_policy,
    mean_variance,
    mean_variance_optimum,
)
from envs.diffusion.core import Diffusion, brownian, coarsen, mesh
from envs.diffusion.environment import DiffusionState, make
from envs.diffusion.paths import Paths, observe, require_finite, simulate, transitions
from envs.diffusion.scalar import (
    black_scholes,
    brownian_quadratic,
    call_option,
    ornstein_uhlenbeck,
)
from envs.diffusion.vector import (
    LinearQuadratic,
    geometric_basket,
    linear_quadratic,
    pendulum,
)

__all__ = [
    "Diffusion",
    "DiffusionState",
    "ErgodicSolution",
    "LinearQuadratic",
    "Market",
    "MeanVariancePolicy",
    "Paths",
    "black_scholes",
    "brownian",
    "brownian_quadratic",
    "call_option",
    "coarsen",
    "ergodic_lq",
    "ergodic_optimum",
    "ergodic_value",
    "gaussian_policy",
    "geometric_basket",
    "linear_quadratic",
    "make",
    "mean_variance",
    "mean_variance_optimum",
    "mesh",
    "observe",
    "ornstein_uhlenbeck",
    "pendulum",
    "require_finite",
    "simulate",
    "transitions",
]

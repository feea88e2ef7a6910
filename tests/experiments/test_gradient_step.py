"""The parts of a gradient step are parts of it."""

import argparse
import math

import jax
from jax.extend.core import jaxprs_in_params

from experiments.benchmarks import gradient_step


def multiplications(function, *arguments):
    """Multiply-adds of all matrix products of a function, by its jaxpr."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (summed, _), _ = equation.params["dimension_numbers"]
                inner = [equation.invars[0].aval.shape[axis] for axis in summed]
                total += equation.outvars[0].aval.size * math.prod(inner)
            for inner in jaxprs_in_params(equation.params):
                total += count(inner)
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_the_products_are_those_of_the_gradient():
    options = argparse.Namespace(
        env="half_cheetah", num_envs=2, gradient_steps=4, batch_size=8, width=16
    )
    found = gradient_step.parts(options)
    counts = {
        name: multiplications(found[name][1], found[name][0], jax.random.key(0))
        for name in ("step", "gradient", "products")
    }
    assert counts["products"] == counts["gradient"] == counts["step"] > 50_000

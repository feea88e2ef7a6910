import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import initializers

TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rlx.networks.initializers import orthogonal
mesh = jax.make_mesh((2,), ("runs",), axis_types=(AxisType.Auto,))
spec = PartitionSpec("runs")
def layers(key):
    return [orthogonal(1.0)(k, (64, 64)) for k in jax.random.split(key, 6)]
init = jax.jit(jax.shard_map(
    jax.vmap(layers), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
))
keys = jax.device_put(
    jax.random.split(jax.random.key(0), 8), NamedSharding(mesh, spec)
)
for _ in range(50):
    jax.block_until_ready(init(keys))
"""


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 3)])
def test_weights_are_flax_s_also_under_vmap(shape):
    keys = jax.random.split(jax.random.key(0), 4)
    ours = jax.vmap(lambda key: initializers.orthogonal(1.4)(key, shape))(keys)
    theirs = jnp.stack([nn.initializers.orthogonal(1.4)(key, shape) for key in keys])
    np.testing.assert_array_equal(ours, theirs)


def test_columns_are_orthogonal_with_the_gain():
    weights = initializers.orthogonal(3.0)(jax.random.key(1), (6, 4))
    np.testing.assert_allclose(weights.T @ weights, 9.0 * np.eye(4), atol=1e-5)


def test_two_cpu_devices_do_not_wait_for_each_other():
    # With a batched factorisation this hung at once, in three of three trials.
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], timeout=240)
    assert done.returncode == 0

"""On meshes with explicit axes and under `jax.shard_map`, a coupling gives what it gives on one device."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("mesh_models.py")


def test_values_and_gradients_of_all_models():
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {os.environ.get('XLA_FLAGS', '')}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROGRAM.parents[2]),
    }
    command = [sys.executable, str(PROGRAM)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]

"""On several (virtual) devices, in one process or two, value and gradient are those of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("mesh_program.py")


def start(devices, *arguments):
    fast_to_compile = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {fast_to_compile}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROGRAM.parents[1]),
    }
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(*processes):
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(e[-3000:] for e in errors)


def test_every_objective_on_every_kind_of_mesh():
    wait_for(start(4, "kinds"))


def test_the_work_of_eight_devices_what_they_send_and_families():
    """In one process, which takes a while to start: the traceback of what fails tells which."""
    wait_for(start(8, "shared_out", "collectives", "families"))


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    wait_for(*[start(4, "processes", address, number) for number in range(2)])

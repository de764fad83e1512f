"""On several (virtual) devices, in one process or two, value and gradient are those of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("mesh_program.py")
COLLECTIVES = Path(__file__).with_name("collectives_program.py")


def start(devices, *arguments, program=PROGRAM):
    fast_to_compile = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {fast_to_compile}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROGRAM.parents[1]),
    }
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(*processes):
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(e[-3000:] for e in errors)


def test_every_objective_on_every_kind_of_mesh():
    wait_for(start(4, "kinds"))


def test_the_work_is_shared_out():
    wait_for(start(8, "shared_out"))


def test_a_step_sends_what_theory_says():
    wait_for(start(8, program=COLLECTIVES))


def test_families():
    wait_for(start(8, "families"))


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    wait_for(*[start(4, "processes", address, number) for number in range(2)])

"""Resident memory, measured in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def in_a_fresh_process(module: str, *args: object) -> Any:
    """What `python -m benchmarks.MODULE ARGS` prints, as JSON; there, what is freed goes back at once.

    So it does not hide the next peak: glibc maps every large block on its own.
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, args)]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


def raised_peak(f: Callable[[], Any]) -> tuple[int, Any]:
    """By how many bytes f() raises the peak of resident memory above what there is before it, and its result."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = status("VmRSS")
    result = jax.block_until_ready(f())
    return status("VmHWM") - before, result


def status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])

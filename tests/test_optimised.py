"""What looks at what XLA makes of the code for users, in a process where it does."""

import os
import re
import subprocess
import sys
from pathlib import Path


def test_all_that_is_marked():
    root = Path(__file__).parents[1]
    marked = [
        str(path)
        for path in Path(__file__).parent.rglob("test_*.py")
        if re.search("mark.optimised|DTYPES", path.read_text())
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "optimised", "--durations=0", *sorted(marked)]
    # In one piece: the functions of a program are optimised alike, whatever the threads that they are dealt out to.
    in_one_piece = "--xla_cpu_parallel_codegen_split_count=1"
    flags = in_one_piece if in_one_piece in os.environ.get("XLA_FLAGS", "") else ""
    environment = {**os.environ, "XLA_FLAGS": flags}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 80

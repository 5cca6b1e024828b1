"""A machine without torch: what a fresh interpreter does where it cannot be imported."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, *args):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocked())
"""


def python_without_torch(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code, with arguments in sys.argv."""
    command = [sys.executable, "-c", BLOCKED + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)

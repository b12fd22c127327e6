"""Runs the bash and python blocks of documentation pages, top to bottom, in one new folder: what they say must work.

    python tests/docs_blocks.py docs/quickstart.md docs/same-model.md

Blocks that install something are left out, and ```sh ones, which need other tools.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(page: Path, folder: Path) -> int:
    """Number of blocks that failed."""
    # The advfast and the python of this environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    failed = 0
    text = page.read_text()
    for match in BLOCK.finditer(text):
        language, block = match.groups()
        if "pip install" in block:
            continue
        line = text.count("\n", 0, match.start()) + 1
        command = [sys.executable, "-c", block]
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block]
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - began
        print(
            f"{page.name}:{line} {language} {'ok' if not done.returncode else 'FAILED'} {seconds:.0f} s"
        )
        if done.returncode:
            failed += 1
            print(block, done.stdout, done.stderr, sep="\n", flush=True)
    return failed


def main(pages: list[str]) -> int:
    failed = 0
    for page in map(Path, pages):
        if not BLOCK.search(page.read_text()):
            print(f"{page} has no blocks")
            failed += 1
        with tempfile.TemporaryDirectory() as folder:
            failed += run(page.resolve(), Path(folder))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

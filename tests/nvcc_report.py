"""Compiles the CUDA kernels as CMakeLists.txt does and reports what ptxas says of each: needs nvcc, no GPU.

    python tests/nvcc_report.py [--archs "80;90;100"] [--out report.csv]

Prints registers, shared memory, stack and spills of every kernel and architecture, and, where cuobjdump is found, the
128-bit loads of its code. The exit status is 1 if a compilation fails, a kernel spills registers (one may: SPILLS), or
the vector path of the linf step has no 128-bit loads.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("kernel", "arch", "registers", "shared", "stack", "spill_stores", "spill_loads")
# The kernels that must use 16-byte accesses: the linf step on four values at a time.
WIDE_LINF = re.compile(r"linf_kernel<4,")
# What may be spilled, in bytes. The chain in tf32 (precision 1) with slots of 16 has 128 registers, for two blocks on a
# multiprocessor; on sm_80 it needs two more.
SPILLS = {("chain_kernel<1, 16>", "sm_80"): 8}


class Kernel(NamedTuple):
    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def tool(name: str) -> str | None:
    """A CUDA program: on PATH, in the usual place, or the copy in Triton's package."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    spec = None if found else importlib.util.find_spec("triton")
    if spec and spec.origin:
        found = shutil.which(name, path=Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    return found


def demangled(names: list[str]) -> list[str]:
    """Readable kernel names without the arguments, "linf_kernel<4, 2, true>"; mangled ones without c++filt."""
    if not names or not shutil.which("c++filt"):
        return names
    run = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = (
        re.sub(r"\(advfast::Precision\)|advfast::|\(anonymous namespace\)::|^void ", "", n)
        for n in run.stdout.split("\n")
    )
    return [name.split("(")[0] for name in short][: len(names)]


def parse_ptxas(log: str) -> list[Kernel]:
    """The kernels in a log of `ptxas -v`."""
    found: list[Kernel] = []
    name = arch = ""
    stack = stores = loads = 0
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            name, arch = entry.groups()
            stack = stores = loads = 0
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, stores, loads = map(int, frame.groups())
        elif name and (used := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append(
                Kernel(
                    name, arch, int(used[1]), int(shared[1]) if shared else 0, stack, stores, loads
                )
            )
            name = ""
    names = demangled([kernel.kernel for kernel in found])
    return [kernel._replace(kernel=name) for kernel, name in zip(found, names, strict=True)]


def compile_kernels(build: Path, archs: str) -> str:
    """The build log of the CUDA objects, with the flags of CMakeLists.txt."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), *generator, "-DADVFAST_CUDA=on",
        f"-DADVFAST_CUDA_ARCHS={archs}", "-DADVFAST_TESTS=OFF", "-DADVFAST_PYTHON=OFF",
        "-DADVFAST_WERROR=ON",
    ]  # fmt: skip
    make = ["cmake", "--build", str(build), "--target", "advfast_cuda", "-j2", "--verbose"]
    log = ""
    for command in (configure, make):
        run = subprocess.run(command, capture_output=True, text=True)
        log += run.stdout + run.stderr
        if run.returncode != 0:
            print(log, file=sys.stderr)
            raise SystemExit(
                f"nvcc_report: {' '.join(command)} failed with status {run.returncode}"
            )
    return log


def wide_loads(build: Path) -> dict[tuple[str, str], int] | None:
    """(kernel, arch) -> number of 128-bit loads in its code; None without cuobjdump."""
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        return None
    counts: dict[tuple[str, str], int] = {}
    for obj in sorted(build.rglob("*.cu.o")):
        run = subprocess.run(
            [cuobjdump, "--dump-sass", str(obj)], capture_output=True, text=True, check=True
        )
        name = arch = ""
        for line in run.stdout.splitlines():
            if code := re.search(r"(?:arch = |code for )(sm_\w+)", line):
                arch = code[1]
            elif function := re.search(r"Function : (\S+)", line):
                name = function[1]
                counts[name, arch] = 0
            elif re.search(r"\bLDG\.E\.128\b", line):
                counts[name, arch] += 1
    names = demangled([name for name, _ in counts])
    return {
        (name, arch): n for name, (_, arch), n in zip(names, counts, counts.values(), strict=True)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--archs", default="80;90;100", help="compute capabilities")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file")
    args = parser.parse_args()
    if tool("nvcc") is None:
        raise SystemExit("nvcc_report: nvcc was not found on PATH or in /usr/local/cuda/bin")

    with tempfile.TemporaryDirectory() as folder:
        kernels = parse_ptxas(compile_kernels(Path(folder), args.archs))
        loads = wide_loads(Path(folder))
    if not kernels:
        raise SystemExit("nvcc_report: no kernel in the log of ptxas")

    kernels.sort(key=lambda k: (k.kernel, int(re.sub(r"\D", "", k.arch))))
    width = max(len(k.kernel) for k in kernels)
    print(
        f"{'kernel':{width}} {'arch':7} {'regs':>4} {'shared':>6} {'stack':>5} spills  128-bit loads"
    )
    for k in kernels:
        wide = "?" if loads is None else loads.get((k.kernel, k.arch), 0)
        spills = k.spill_stores + k.spill_loads
        print(
            f"{k.kernel:{width}} {k.arch:7} {k.registers:4} {k.shared:6} {k.stack:5} {spills:6}  {wide:>13}"
        )
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*FIELDS, "wide_loads"))
            for k in kernels:
                writer.writerow((*k, "" if loads is None else loads.get((k.kernel, k.arch), 0)))

    bad = [
        f"{k.kernel} ({k.arch}) spills registers"
        for k in kernels
        if max(k.spill_stores, k.spill_loads) > SPILLS.get((k.kernel, k.arch), 0)
    ]
    if loads is None:
        print(
            "128-bit loads were not looked at: there is no cuobjdump (the triton package has one)"
        )
    else:
        vector = [(key, n) for key, n in loads.items() if WIDE_LINF.match(key[0])]
        bad += [f"{name} ({arch}) has no 128-bit loads" for (name, arch), n in vector if n == 0]
        if not vector:
            bad.append("no vector kernel of the linf step was found")
    archs = sorted({k.arch for k in kernels})
    print(f"{len(kernels)} kernels ({', '.join(archs)}); problems: {len(bad)}")
    for problem in bad:
        print(problem, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

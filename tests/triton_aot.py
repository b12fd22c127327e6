"""Compiles every Triton specialisation that a launcher can ask for, for GPUs that need not be there.

    python tests/triton_aot.py [--archs 80,90,100] [--jobs 2] [--out FILE.csv]

For each: it compiles, it does not spill (the ntk kernels: a few numbers), the ntk kernels stay under 99 KB of shared
memory, and the linf and activation kernels have no contracted multiply-add (their results would differ in the last bit)
and move 16 bytes at once where the launcher found alignment.
The launchers are run too, with the launch itself replaced, to see that Triton would derive from
their arguments exactly what is compiled here. Exits with 1 on any failure.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    sys.exit("triton_aot.py compiles: unset TRITON_INTERPRET")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from advfast.kernels.activation import triton as activation
from advfast.kernels.apgd import triton as apgd
from advfast.kernels.hash import triton as row_hash
from advfast.kernels.ntk import triton as ntk
from advfast.kernels.pgd import triton as pgd
from advfast.kernels.square import triton as square

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
}
FIELDS = ("kernel", "dtype", "constant", "value", "arch", "registers", "spilled_bytes", "stack_bytes",
          "shared_bytes", "ptx_bytes", "cubin_bytes", "loads_16_bytes", "stores_16_bytes", "seconds",
          "failures")  # fmt: skip


# Of a thread of the ntk kernels, in bytes: on sm_80 three chains with tiles of 64 positions need ten numbers more than
# there are registers.
NTK_STACK = 64
INTEGERS = {2: "*i16", 4: "*i32", 8: "*i64"}
FAMILIES: dict[str, ModuleType] = {"pgd": pgd, "activation": activation, "hash": row_hash,
                                     "ntk": ntk, "square": square, "apgd": apgd}  # fmt: skip
Spec = (
    apgd.Specialisation
    | pgd.Specialisation
    | activation.Specialisation
    | row_hash.Specialisation
    | ntk.Specialisation
    | square.Specialisation
)


def module_of(spec: Spec) -> ModuleType:
    return next(family for family in FAMILIES.values() if isinstance(spec, family.Specialisation))


def pointers(spec: Spec) -> dict[str, str | None]:
    """The types of the parameters that have no annotation."""
    if isinstance(spec, pgd.Specialisation):
        return {"x": "*fp32", "x0": "*fp32", "out": "*i16", "grad": POINTERS.get(spec.grad)}
    if isinstance(spec, row_hash.Specialisation):
        return {"x": INTEGERS[spec.value], "out": "*i64"}
    if isinstance(spec, square.Specialisation):
        images = dict.fromkeys(("best", "candidate", "x0", "out", "signs"), "*fp32")
        return images | {"places": "*i64", "improved": "*u8"}
    if isinstance(spec, ntk.Specialisation):
        return dict.fromkeys(("out", "x", "g", "x1", "g1", "x2", "g2"), "*fp32")
    if isinstance(spec, apgd.Specialisation):
        names = ("x", "x_prev", "x0", "gradient", "step", "best", "best_gradient")
        return dict.fromkeys(names, "*fp32")
    own = POINTERS[spec.dtype]
    # Where there is none, the launcher gives the images for it.
    number = own if spec.value < 0 or spec.dtype == torch.float64 else "*fp32"
    return dict.fromkeys(activation.ALIGNED, own) | {
        "bits": "*u8",
        "scale": number,
        "shift": number,
    }


def kernel_of(spec: Spec) -> Any:
    return module_of(spec).KERNELS[spec.kernel][0]


def signature(spec: Spec) -> dict[str, str | None]:
    """The type of each parameter."""
    types = pointers(spec)
    return {
        p.name: "constexpr" if p.is_constexpr else p.annotation_type or types[p.name]
        for p in kernel_of(spec).params
    }


def multiples(spec: Spec) -> list[str]:
    """The parameters that are known to be multiples of 16."""
    if isinstance(spec, activation.Specialisation):
        return [name for name in kernel_of(spec).arg_names if name in activation.ALIGNED]
    return list(pgd.ALIGNED) if spec.kernel.endswith("-aligned") else []


def compiled(spec: Spec, arch: int) -> Any:
    kernel = kernel_of(spec)
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples(spec)}
    source = ASTSource(kernel, signature(spec), constexprs=spec.constants(), attrs=attrs)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=spec.options())


def tool(name: str) -> str | None:
    """A CUDA binary tool: Triton's wheel brings one, a toolkit another."""
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(own) if own.exists() else shutil.which(name)


def dump(cubin: bytes, option: str) -> str | None:
    """Output of cuobjdump, or None where there is none."""
    program = tool("cuobjdump")
    if program is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([program, option, file.name], capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else None


def usage(cubin: bytes, what: str) -> int | None:
    found = re.search(rf"{what}:(\d+)", dump(cubin, "-res-usage") or "")
    return int(found.group(1)) if found else None


def failures(spec: Spec, row: dict[str, Any], ptx: str, cubin: bytes) -> list[str]:
    found = []
    if row["spilled_bytes"]:
        found.append("spills registers")
    if isinstance(spec, ntk.Specialisation):
        if row["stack_bytes"] > NTK_STACK:
            found.append(f"{row['stack_bytes']} bytes of registers spilled to the stack")
        if row["shared_bytes"] > 99 * 1024:
            found.append("more than 99 KB of shared memory")
        return found
    affine = isinstance(spec, activation.Specialisation) and spec.value >= 0
    linf = spec.kernel.startswith("linf") or (spec.constant, spec.value) == ("NORM", 0)
    linf |= spec.kernel == "window"
    if affine or linf:
        number = "f64" if affine and spec[1] == torch.float64 else "f32"
        if re.search(rf"\bfma\.rn(\.ftz)?\.{number}", ptx):
            found.append(f"fma.rn.{number} in the PTX")
        if not re.search(rf"\bmul\.rn\.{number}|\bmul\.{number}", ptx):
            found.append("no multiplication found in the PTX: the check above sees nothing")
        if ("DFMA" if number == "f64" else "FFMA") in (dump(cubin, "-sass") or ""):
            found.append("a fused multiply-add in the machine code")
    if isinstance(spec, activation.Specialisation):
        # The images and the other operand, to and fro.
        loads, stores = 2, 1
    elif spec.kernel.endswith("-aligned"):
        # A thread has four elements: 16 bytes of x and x0, and of a gradient that is not 16-bit.
        loads, stores = 2 if spec.grad.itemsize == 2 else 3, 2
    else:
        return found
    if row["loads_16_bytes"] < loads:
        found.append("16-byte loads missing")
    if row["stores_16_bytes"] < stores:
        found.append("16-byte stores missing")
    return found


def measure(task: tuple[Spec, int]) -> dict[str, Any]:
    spec, arch = task
    begin = time.perf_counter()
    kernel, dtype, constant, value = spec
    row: dict[str, Any] = {
        "kernel": kernel,
        "dtype": "" if dtype is None else str(dtype).removeprefix("torch."),
        "constant": constant,
        "value": value,
        "arch": arch,
    }
    try:
        program = compiled(spec, arch)
        ptx, cubin = program.asm["ptx"], program.asm["cubin"]
        row |= {
            "registers": usage(cubin, "REG"),
            "spilled_bytes": usage(cubin, "LOCAL"),
            "stack_bytes": usage(cubin, "STACK"),
            "shared_bytes": program.metadata.shared,
            "ptx_bytes": len(ptx),
            "cubin_bytes": len(cubin),
            "loads_16_bytes": len(re.findall(r"ld\.global\S*\.(?:v4\.[bf]32|v2\.[bf]64)", ptx)),
            "stores_16_bytes": len(re.findall(r"st\.global\S*\.(?:v4\.[bf]32|v2\.[bf]64)", ptx)),
        }
        row["failures"] = "; ".join(failures(spec, row, ptx, cubin))
    except Exception as error:  # every specialisation gets its row
        row["failures"] = f"{type(error).__name__}: ...{str(error)[-300:]}".replace("\n", " ")
    return row | {"seconds": round(time.perf_counter() - begin, 1)}


def ask_pgd() -> None:
    for dtype, norm, n, first in itertools.product(POINTERS, ("linf", "l2", "l1"), (32, 5), (0, 1)):
        x, grad, x0, out = (torch.zeros(n + 1, dtype=d)[first : n + first].reshape(1, n, 1, 1)
                            for d in (torch.float32, dtype, torch.float32, dtype))  # fmt: skip
        for mask, alpha in ((None, 0.1), (x > 0, 0.1), (None, torch.ones(1, n, 1, 1))):
            pgd.pgd_step_(
                x, grad, x0, alpha=alpha, eps=1.0, lo=0.0, hi=1.0, norm=norm, mask=mask,
                l2_order="ball-box", out=out, scale=None, shift=None, nonfinite=None,
            )  # fmt: skip
    x, seed = torch.zeros(2, 3), torch.ones(1, dtype=torch.int64)
    for norm, offset in itertools.product(("linf", "l2", "l1"), (0, 1, 16, 2**32 - 1)):
        pgd.random_start(
            x, eps=1.0, lo=0.0, hi=1.0, norm=norm, seed=seed, offset=offset, sample_ids=None
        )


def ask_activation() -> None:
    shapes = ((1, 3, 1, 8), (2, 3, 1, 5), (1, 16), (1, 1, 1, 1))
    for dtype, shape, first in itertools.product(POINTERS, shapes, (0, 1)):
        n = torch.Size(shape).numel()
        x, other = (torch.zeros(n + 1, dtype=dtype)[first : n + first].reshape(shape) for _ in "xo")
        number = torch.ones(shape[1] + 1, dtype=dtype if dtype == torch.float64 else torch.float32)[
            first : first + shape[1]
        ]
        bits = activation.positive_bits(x)
        activation.affine_relu_bits(x, number, number)
        for more in (None, other):
            activation.relu_bits_(x, more)
            for scale in (None, number):
                activation.gate_(x, bits, scale, more)


def ask_hash() -> None:
    for dtype, dim, first in itertools.product(POINTERS, (1, 16), (0, 1)):
        row_hash.row_hash(torch.zeros(dim + 1, dtype=dtype)[first : dim + first].reshape(1, dim))


def ask_square() -> None:
    best, places = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, dtype=torch.int64)
    for x in (best, best.contiguous(memory_format=torch.channels_last)):
        square.square_window(x, x.clone(), places, torch.ones(2, 3), 0.1, 2, 2)
        square.square_accept_(x, x.clone(), torch.ones(2) > 0, places, 2, 2)


def ask_ntk() -> None:
    for positions, taps, precision in itertools.product((4, 17), (None, 1, 2), ntk._PRECISIONS):
        index = None if taps is None else torch.zeros(positions, taps, dtype=torch.int32)
        x, g = torch.zeros(2, 1, positions, 3), torch.zeros(2, 2, 1, positions, 5)
        for run in (ntk.ntk_chain_, ntk.ntk_hadamard_):
            run(torch.zeros(4, 4), x, g, x, g, index, index, precision, False)
        ntk.ntk_patch_gram(x, x, index, index, precision)
        ntk.ntk_rows(x, g, index)


def ask_apgd() -> None:
    for (n, first), momentum, norm in itertools.product(
        ((16, 0), (5, 1)), (1.0, 0.5), apgd.KERNELS
    ):
        images = [torch.zeros(n + 1)[first : n + first].reshape(1, n) for _ in range(6)]
        x, x_prev, x0, gradient, best, best_gradient = images
        for improved in (None, x[:, 0] > 0):
            kept = (None, None) if improved is None else (best, best_gradient)
            apgd.apgd_step_(
                x, x_prev, x0, gradient, x[:, 0].clone(), momentum, 0.1, norm, improved, *kept
            )


def requests(family: ModuleType, ask: Callable[[], None]) -> list[tuple[Spec, tuple]]:
    """What the launchers of a family ask for, over inputs that reach every specialisation."""
    found: list[tuple[Spec, tuple]] = []
    # The specialisation comes first, the arguments of the kernel last.
    launch, family._launch = family._launch, lambda *given: found.append((given[0], given[-1]))
    try:
        ask()
    finally:
        family._launch = launch
    return found


def mismatches() -> list[str]:
    """Where Triton's own derivation from the launcher's arguments is not what is compiled here."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    wrong = []
    for name, ask in (
        ("pgd", ask_pgd),
        ("activation", ask_activation),
        ("hash", ask_hash),
        ("ntk", ask_ntk),
        ("square", ask_square),
        ("apgd", ask_apgd),
    ):
        asked = requests(FAMILIES[name], ask)
        for spec in set(FAMILIES[name].specialisations()) ^ {spec for spec, _ in asked}:
            wrong.append(f"{spec} is either not listed or never asked for")
        for spec, args in asked:
            kernel = kernel_of(spec)
            binder = create_function_from_signature(kernel.signature, kernel.params, backend)
            derived = binder(*args, **spec.constants())[1]
            types = [kind for kind, _ in derived]
            aligned = [p.name for p, (kind, value) in zip(kernel.params, derived, strict=True)
                       if kind != "constexpr" and value]  # fmt: skip
            if types != list(signature(spec).values()) or aligned != multiples(spec):
                wrong.append(f"{spec}: Triton derives {types} and multiples of 16 {aligned}")
    return sorted(set(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80,90,100", help="compute capabilities, default all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, default 2")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    options = parser.parse_args()
    archs = [int(arch) for arch in options.archs.split(",")]
    begin = time.perf_counter()
    wrong = mismatches()
    specialisations = [spec for family in FAMILIES.values() for spec in family.specialisations()]
    tasks = list(itertools.product(specialisations, archs))
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        rows = list(pool.map(measure, tasks))

    print(f"triton {triton.__version__}, {len(tasks)} compilations")
    if tool("cuobjdump") is None:
        print("no cuobjdump: registers, spills and machine code are not checked, the PTX is")
    columns = FIELDS[:-2]
    widths = [max(len(c), *(len(str(row.get(c, ""))) for row in rows)) for c in columns]
    for row in ({c: c for c in columns}, *rows):
        cells = [str("-" if row.get(c) is None else row[c]) for c in columns]
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    for row in rows:
        if row["failures"]:
            where = f"{row['kernel']} {row['dtype']} {row['constant']}={row['value']}"
            wrong.append(f"{where} sm_{row['arch']}: {row['failures']}")
    print(*(f"FAILED {line}" for line in wrong), sep="\n")
    print(f"{len(wrong)} failures, {time.perf_counter() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The README's table from benchmarks/results/kernels_cpu.csv: python benchmarks/table.py [FILE.csv]"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROWS = [
    ("linf", "NCHW", "64x3x224x224"),
    ("linf", "NHWC", "64x3x224x224"),
    ("linf", "NCHW", "128x3x32x32"),
    ("l2", "NCHW", "64x3x224x224"),
    ("l2", "NCHW", "128x3x32x32"),
    ("l1", "NCHW", "64x3x224x224"),
]


def main() -> None:
    path = (
        sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "kernels_cpu.csv"
    )
    with open(path) as file:
        found = {
            (r["norm"], r["layout"], r["shape"], r["provider"]): r
            for r in csv.DictReader(file)
            if r["op"] == "pgd_step_" and r["dtype"] == "fp32" and not r["case"]
        }
    print(
        "| step, fp32 | eager | in place | advfast | x eager | x in place | % of copy bandwidth |"
    )
    print("|---|---|---|---|---|---|---|")
    for norm, layout, shape in ROWS:
        torch, inplace, ours = (
            found[norm, layout, shape, name] for name in ("torch", "torch_inplace", "cpp")
        )
        times = " | ".join(f"{float(r['ms_p50']):.3g} ms" for r in (torch, inplace, ours))
        print(
            f"| {norm} {shape} {layout} | {times} | {float(ours['ratio_to_torch']):.1f} "
            f"| {float(ours['ratio_to_inplace']):.1f} | {float(ours['percent_of_copy']):.0f} |"
        )


if __name__ == "__main__":
    main()

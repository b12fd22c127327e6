"""The one table of all results: its columns, their machine, the CSV file, the printed form."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("kernels", "attack", "train", "ntk")


@dataclass(frozen=True)
class Row:
    """One provider in one case. Empty: does not apply. Every number is of the same run."""

    date: str = ""  # UTC, ISO 8601, start of the run
    commit: str = ""  # of the source tree; "+changes" where it had uncommitted ones
    device: str = ""  # cpu | cuda: where the tensors were
    machine: str = ""  # CPU model and number of cores
    threads: int = 0  # torch.get_num_threads()
    load: float | None = None  # average of the last minute before the run, see os.getloadavg
    gpu: str = ""  # name of the GPU, "none" for a CPU row
    driver: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    suite: str = ""  # kernels | attack | train | ntk
    op: str = ""  # the fused op, or what is run as a whole
    norm: str = ""
    provider: str = ""
    peer_version: str = ""  # of the package behind the provider
    dtype: str = ""  # kernels: of the gradient; attack and train: of the images
    layout: str = ""  # NCHW | NHWC
    shape: str = ""  # 64x3x224x224
    case: str = ""  # what else tells this case apart
    bytes: int | None = None  # kernels: fewest bytes that the op must move
    copy_gb_per_s: float | None = None  # of tensor.copy_ at this size, read and write counted
    floor_ms: float | None = None  # kernels: bytes at that rate; attack: the convolutions alone;
    # ntk: capture_gflop and contraction_gflop at the rate of a matmul in the same rounds
    ms_p20: float | None = None
    ms_p50: float | None = None
    ms_p80: float | None = None
    gb_per_s: float | None = None  # bytes / ms_p50
    percent_of_copy: float | None = None  # gb_per_s / copy_gb_per_s
    ratio_to_torch: float | None = None  # ms_p50 of "torch" / ms_p50: above 1 is faster than it
    ratio_to_inplace: float | None = None  # the same against "torch_inplace"
    ratio_to_torchattacks: float | None = None  # the same against "torchattacks"
    ratio_to_torch_func: float | None = None  # the same against "torch_func"
    ratio_to_neural_tangents: float | None = None  # the same against "neural_tangents"
    ratio_to_floor: float | None = None  # attack, ntk: ms_p50 / floor_ms
    percent_of_matmul: float | None = (
        None  # attack, ntk: FLOP/s in ms_p50, of a matmul's in this run
    )
    first_ms: float | None = None  # attack: the first call on a new copy of the network
    us_over_network: float | None = None  # attack, tiny network: (ms_p50 - "network"'s) a step
    memory_bytes: int | None = None  # attack: what autograd keeps, see results/README.md
    peak_bytes: int | None = None  # attack: most memory above that before the call
    first_peak_bytes: int | None = None  # the same of the first call on a new copy of the network
    graph_launches: int | None = None  # attack on a GPU, by the host in one call
    kernel_launches: int | None = None  # the same, outside of graphs
    other_ms: float | None = None  # attack: time of the GPU outside convolutions and matmuls
    equal_share: float | None = None  # attack: share of the elements with the bits of "torch"
    readouts: int | None = None  # ntk: R
    capture_gflop: float | None = (
        None  # ntk: a forward pass and R backward to the input, no weights
    )
    contraction_gflop: float | None = None  # ntk: of the plan's contraction
    gflop_per_s: float | None = None  # ntk: both over ms_p50; of "matmul": its own
    rel_error: float | None = (
        None  # ntk: Frobenius, against "torch_func"; alone: of the engine's check; train: of losses, against "torch"
    )
    rounds: int | None = None  # timed calls behind the percentiles
    status: str = "ok"  # ok | skipped: reason | failed: reason | wrong: what | untimed: why


FIELDS = tuple(field.name for field in fields(Row))
# A later run on the same machine and commit replaces the row with the same key.
KEY = (
    "commit", "device", "machine", "threads", "gpu", "torch", "triton", "suite", "op", "norm",
    "provider", "dtype", "layout", "shape", "case",
)  # fmt: skip


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def package_version(name: str) -> str:
    """Version of an installed distribution, or "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    commit = _output("git", "rev-parse", "HEAD")
    if commit:
        # Results written by an earlier stage do not change what is measured.
        changed = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
        return commit + ("+changes" if changed else "")
    import advfast

    return str(advfast.info()["commit"])


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str) -> Row:
    """A row with the columns that every row of this run shares."""
    on_gpu = device == "cuda"
    driver = "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
    return Row(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=_commit(),
        device=device,
        machine=f"{_cpu_model()}, {os.cpu_count()} cores",
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        gpu=torch.cuda.get_device_name() if on_gpu else "none",
        driver=(_output(*driver).splitlines() or ["unknown"])[0] if on_gpu else "",
        python=platform.python_version(),
        torch=torch.__version__,
        triton=package_version("triton"),
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def failure(error: Exception) -> str:
    """The status of a row whose provider raised."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file; columns that were added after it was written are empty.

    Raises:
        ValueError: the file has columns that this version does not write, or lacks some of a key.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if not columns <= set(FIELDS) or not columns >= set(KEY):
            raise ValueError(
                f"{path} has other columns than this version writes; expected {', '.join(FIELDS)}, "
                f"got {', '.join(reader.fieldnames or ())}: give another --out"
            )
        return [{name: row.get(name, "") for name in FIELDS} for row in reader]


class Results:
    """Rows of one run; each one is in the file (if there is one) as soon as it is added."""

    def __init__(self, path: Path | None, shared: Row) -> None:
        self.path = path
        self.shared = shared
        self.rows: list[Row] = []
        self._file: dict[tuple[str, ...], dict[str, str]] = {}
        if path is not None and path.exists():
            self._file = {key(row): row for row in read(path)}

    def add(self, rows: list[Row]) -> None:
        own = {field: getattr(self.shared, field) for field in FIELDS[: FIELDS.index("suite")]}
        for row in rows:
            row = replace(row, **own)
            self.rows.append(row)
            text = {name: _text(value) for name, value in asdict(row).items()}
            self._file[key(text)] = text
        if self.path is not None:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._file.values())
        part.replace(path)


_SHOWN = {
    "provider": "provider", "ms_p50": "ms p50", "ms_p20": "p20", "ms_p80": "p80",
    "gb_per_s": "GB/s", "percent_of_copy": "% of copy", "ratio_to_torch": "x torch",
    "ratio_to_inplace": "x in place", "ratio_to_torchattacks": "x torchattacks",
    "ratio_to_torch_func": "x torch_func", "ratio_to_neural_tangents": "x neural_tangents",
    "ratio_to_floor": "of floor", "percent_of_matmul": "% of matmul", "first_ms": "first ms",
    "us_over_network": "us/step over network", "memory_bytes": "kept", "peak_bytes": "peak",
    "first_peak_bytes": "first peak",
    "graph_launches": "graphs", "kernel_launches": "launches", "other_ms": "other ms",
    "equal_share": "equal", "gflop_per_s": "GFLOP/s", "rel_error": "rel error",
    "status": "status",
}  # fmt: skip


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.startswith("percent") or name == "us_over_network":
        return f"{value:.1f}"
    if name.startswith("ratio"):
        return f"{value:.2f}"
    if name.endswith("_bytes"):
        return f"{int(str(value)) / 2**20:.1f} MiB"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[Row]) -> str:
    """The rows as text, one block a case."""
    names = [name for name in _SHOWN if any(getattr(row, name) is not None for row in rows)]
    body = [[_cell(name, getattr(row, name)) for name in names] for row in rows]
    heads = [_SHOWN[name] for name in names]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]

    def line(cells: list[str]) -> str:
        pairs = list(zip(cells, widths, strict=True))
        first, last = f"  {pairs[0][0]:<{pairs[0][1]}}", pairs[-1][0]
        return "  ".join([first, *(f"{cell:>{width}}" for cell, width in pairs[1:-1]), last])

    lines, title = [], None
    for row, cells in zip(rows, body, strict=True):
        parts = (row.op, row.norm, row.dtype, row.layout, row.shape, row.case)
        head = " ".join(filter(None, parts))
        if head != title:
            floor = f", floor {row.floor_ms:.4g} ms" if row.floor_ms is not None else ""
            lines += ["", head + floor, line(heads)]
            title = head
        lines.append(line(cells).rstrip())
    return "\n".join(lines)

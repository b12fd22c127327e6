"""advfast info."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from advfast._backend import NOT_MADE

from .options import Debug


def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what was built and what can run here."""
    import advfast

    found = advfast.info()
    print(json.dumps(found, indent=2, default=str) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    """One line a fact; then for each op which implementation runs, and why another one does not."""
    lines = []
    for name, value in found.items():
        if name == "ops":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {part}" for key, part in value.items())
        lines.append(f"{name:<10}{value}")
    ops: dict[str, dict[str, str]] = found["ops"]
    impls = list(next(iter(ops.values())))
    width = max(len(op) for op in ops) + 2
    lines += ["", f"{'op':<{width}}" + "".join(f"{impl:<11}" for impl in impls)]
    reasons: dict[str, str] = {}
    for op, states in ops.items():
        row = f"{op:<{width}}"
        for impl in impls:
            state = states[impl]
            cell = {"available": "yes", NOT_MADE: "-"}.get(state, "no")
            row += f"{cell:<11}"
            if cell == "no":
                reasons[impl] = state
        lines.append(row.rstrip())
    lines += [f"no {impl}: {reason}" for impl, reason in reasons.items()]
    return "\n".join(lines)

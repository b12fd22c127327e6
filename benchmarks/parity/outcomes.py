"""What pytest reported, test by test, from its JUnit file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Count:
    """Of one test function, over its parameters. message: of the first failure."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    message: str = ""


def read(path: Path) -> dict[str, Count]:
    """Counts by "file::Class::test"; a broken collection counts as a failed test."""
    counts: defaultdict[str, Count] = defaultdict(Count)
    for case in ET.parse(path).getroot().iter("testcase"):
        name = re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)
        place = case.get("classname", "").split(".")
        count = counts["::".join([*place[-2:], name] if place[-1:] != [""] else [name])]
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        if bad is not None:
            count.failed += 1
            count.message = count.message or " ".join((bad.get("message") or "").split())[:200]
        elif case.find("skipped") is not None:
            count.skipped += 1
        else:
            count.passed += 1
    return dict(counts)

"""Figures as a table of ratios, written between two markers of docs/performance.md."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass
class Figure:
    """One line: what was measured, ours, the peer's, and the ratio of the two that we want at least (or at most)."""

    what: str
    ours: str
    peer: str
    value: float | None = None
    want: str = ""

    def holds(self):
        if not self.want or self.value is None:
            return None
        sign, limit = self.want.split()[:2]
        return self.value >= float(limit) if sign == "≥" else self.value <= float(limit)

    def cells(self):
        mark = {True: "yes", False: "**no**", None: ""}[self.holds()]
        value = f"{self.value:.2f}" if self.peer and self.value is not None else ""
        return [self.what, self.ours, self.peer, value, self.want, mark]


HEAD = ["what", "Tarn", "peer", "ratio", "wanted", "met"]


def table(figures):
    rows = [HEAD, ["---", "---:", "---:", "---:", "---", "---"], *(figure.cells() for figure in figures)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write(sections, build):
    """Replaces what stands between the markers; the prose around them is written by hand."""
    parts = [f"Measured on {os.cpu_count()} cores ({processor()}), Linux {platform.release().split('-')[0]}, build profile `{build}`."]
    for title, figures in sections:
        parts += [f"### {title}", table(figures)]
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + after)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()

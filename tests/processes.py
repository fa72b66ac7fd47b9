"""What `/proc` tells about the processes of a node, for tests and bench: an honest witness of whether DuckDB still works on something."""

import contextlib
import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
WINDOW_SECONDS = 0.2


def descendants(pid):
    """All processes below one, by the parents that they name."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(int(after_name(path)[1]), []).append(int(path.parent.name))
    found, todo = [], [pid]
    while todo:
        found += (below := children.get(todo.pop(), []))
        todo += below
    return found


def cpu_seconds(pid):
    """User and system time of a process so far, in steps of 10 ms."""
    try:
        fields = after_name(Path(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return 0  # ended meanwhile
    return (int(fields[11]) + int(fields[12])) / TICKS


def after_name(path):
    """The fields of a `stat` file from the state on: the name before it may hold spaces."""
    return path.read_text().rsplit(") ", 1)[1].split()


def engine_seconds(node):
    """Processor time of all engines of a node."""
    return sum(cpu_seconds(pid) for pid in descendants(node))


def engines_work(node):
    """Whether the engines used more than a tenth of a processor in the last moments."""
    before = engine_seconds(node)
    time.sleep(WINDOW_SECONDS)
    return engine_seconds(node) - before > WINDOW_SECONDS / 10

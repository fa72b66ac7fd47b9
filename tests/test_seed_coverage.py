"""Each promise of the guide that the product grew from has a test that names it."""

import re

import pytest

from served import ROOT

PROMISES = re.findall(r"^\| (S\d+) \| .+ \| (.+) \|$", (ROOT / "docs" / "seed-coverage.md").read_text(), re.MULTILINE)


def test_no_promise_is_missing():
    assert [number for number, _ in PROMISES] == [f"S{n}" for n in range(1, 26)]


@pytest.mark.parametrize("number, where", PROMISES)
def test_a_test_names_it(number, where):
    file, name = where.strip("`").split("::")
    lines = (ROOT / file).read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if re.match(rf"\s*(async )?(def|fn) {name}\(", line))
    # In its docstring, or in the comment right above it (and above its attributes).
    near = "\n".join(lines[max(start - 4, 0) : start + 6])
    assert re.search(rf"\b{number}\b", near), f"{where} does not name {number}"

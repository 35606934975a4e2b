"""What the tests of this folder share: a way to print a figure that shows with `pytest -s` and in the report."""

from collections.abc import Callable

import pytest


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a line in spite of capturing, and keep it in the XML report."""

    def tell(line: str) -> None:
        record_property("report", line)
        with capsys.disabled():
            print(f"\n  {line}")

    return tell

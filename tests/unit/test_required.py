"""What a machine lacks is skipped at a desk; where it is required, as in CI, its tests fail."""

from __future__ import annotations

import pytest

from tests.support.required import REQUIRE, do_without, needs


@pytest.mark.parametrize(("required", "is_there", "is_skipped"), [
    ("", False, True), ("pooler disk", False, True), ("pooler clocks", False, False), ("", True, False),
])  # fmt: skip
def test_a_mark(monkeypatch: pytest.MonkeyPatch, required: str, is_there: bool, is_skipped: bool) -> None:
    """Skipped only where it is neither there nor required."""
    monkeypatch.setenv(REQUIRE, required)
    assert needs("clocks", is_there, "there is none").args == (is_skipped,)


def test_in_the_middle_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped, or failed with both reasons."""
    monkeypatch.setenv(REQUIRE, "pooler")
    with pytest.raises(pytest.skip.Exception, match="can't be mounted"):
        do_without("disk", "it can't be mounted")
    monkeypatch.setenv(REQUIRE, "disk")
    with pytest.raises(pytest.fail.Exception, match=r"can't be mounted, and TANDEM_REQUIRE says .* disk"):
        do_without("disk", "it can't be mounted")

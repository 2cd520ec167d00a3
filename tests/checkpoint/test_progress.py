"""The bar is on standard error, and only where somebody watches."""

from __future__ import annotations

import pytest

from leadline.checkpoint.progress import progress_bar


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), (False, False), (True, True)])
def test_off_a_terminal_nothing_is_shown_unless_asked(
    capsys: pytest.CaptureFixture[str], wanted: bool | None, shown: bool
) -> None:
    with progress_bar("loading tiny", 100, wanted, least=0) as advance:
        for _ in range(4):
            advance(25)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("loading tiny" in captured.err) == shown

"""The chaos run in its short form; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import chaos


def test_the_accounts_agree_to_the_last_request_whatever_happens(tmp_path: Path) -> None:
    """One life that is killed midway, one that is drained while busy, and faults in both."""
    summary = chaos(5.0, tmp_path)
    assert summary["faults"] == []
    assert summary["lives"] == {"killed": 1, "drained": 1}
    assert summary["clients"]["200"] > 10
    # the faults, the overload and the kill were met, or the test shows nothing
    assert summary["clients"]["lost"] == summary["retried"] > 0
    assert summary["clients"]["429"] > 0
    assert summary["clients"].get("503", 0) + summary["clients"].get("500", 0) > 0
    assert summary["checked"]["requests compared one by one"] > 20
    assert summary["checked"]["accounts equal"] == summary["checked"]["drained while busy"] == 1
    assert summary["checked"]["jobs that ended once"] == summary["queued jobs"] > 0

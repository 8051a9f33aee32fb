"""Which of supervisord's children is the daemon: all the others are asked to leave after it."""

from __future__ import annotations

import pytest

from overnight.cli import supervise


@pytest.mark.parametrize(
    "words",
    [
        "/v/bin/python /v/bin/overnight --home /h/etc/.. daemon",
        "/v/bin/python /v/bin/overnight --home /h/etc/.. daemon --option value",
        "/v/bin/python -m overnight --home=/h daemon --flag",
        "overnight --home daemon daemon",
        "overnight daemon",
    ],
)
def test_the_daemon_is_known_with_and_without_options(words: str) -> None:
    assert supervise._runs_daemon(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "/v/bin/python /v/bin/overnight-watchdog --home /h/etc/..",
        "/v/bin/python /v/bin/overnight-watchdog --home daemon",
        "/v/bin/python -m overnight_watchdog --home /srv/overnight",
        "/v/bin/python /v/bin/overnight --home daemon status",
        "/v/bin/python /v/bin/overnight submit --command daemon",
        "/v/bin/python -m supervisor.supervisord -c /h/etc/supervisord.conf",
        "nginx -g daemon off;",
        "/usr/sbin/other daemon",
        "overnight --home",
        "",
    ],
)
def test_nobody_else_is_taken_for_it(words: str) -> None:
    assert not supervise._runs_daemon(words.split())

"""etc/overnight.toml: the shipped file is the defaults; whatever is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.config import Config, load_config
from overnight.errors import ConfigError


def test_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml") == Config()


def test_shipped_file_says_the_defaults(repository: Path) -> None:
    assert load_config(repository / "etc" / "overnight.toml") == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[daemon]\nslot = 2", "daemon.slot: unknown key; did you mean 'slots'?"),
        ("[demon]\nslots = 2", "demon: unknown key; did you mean 'daemon'?"),
        ("[daemon]\nslots = 0", "daemon.slots"),
        ("[memory]\nbudget = '2 gigs'", "memory.budget: a size such as 2GiB or 512MiB is expected"),
        ("[daemon\n", "not valid TOML"),
        ("[warm]\nidle_s = 'long'", "warm.idle_s"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "overnight.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert words in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "overnight.toml"
    path.write_text("[memory]\nbudget = '1.5GiB'")
    assert load_config(path).memory.budget == 3 * 2**29

"""A report in a real browser: no word of a model runs, and the page can be used by keyboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import report_night
from overnight.cli.main import main
from overnight.report import html

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_KEYBOARD = """<!doctype html><iframe src="{index}" width="1280" height="900"></iframe><ul></ul><script>
const say = (text) => {{ const li = document.createElement('li'); li.textContent = text;
  document.querySelector('ul').append(li); }};
document.querySelector('iframe').addEventListener('load', () => {{
  const page = document.querySelector('iframe').contentDocument;
  const view = page.defaultView;
  const chosen = () => page.querySelector('.chosen .key-name')?.textContent;
  const press = (key) => page.activeElement.dispatchEvent(new view.KeyboardEvent('keydown', {{key, bubbles: true}}));
  const cells = [...page.querySelectorAll('a.cell')];
  say('tabs=' + cells.filter((cell) => cell.tabIndex === 0).length);
  cells[0].focus(); say('first=' + chosen());
  press('ArrowRight'); say('right=' + chosen());
  press('ArrowDown'); say('down=' + chosen());
  press('End'); say('end=' + chosen());
  cells[1].dispatchEvent(new view.MouseEvent('click', {{bubbles: true, cancelable: true, detail: 1}}));
  say('click=' + chosen());
  const button = page.querySelector('button.theme');
  button.click(); button.click(); say('theme=' + page.documentElement.dataset.theme);
  const colour = () => view.getComputedStyle(cells[2]).backgroundColor;
  const before = colour(); page.getElementById('by-status').click(); say('recoloured=' + (colour() !== before));
  const heads = page.querySelectorAll('table.sortable thead button'); heads[2].click();
  say('sorted=' + page.querySelector('table.sortable tbody th').textContent);
  const filter = page.querySelector('.filter input'); filter.value = 'failed';
  filter.dispatchEvent(new view.Event('input')); say('filtered=' + page.querySelector('.filter output').textContent);
  say('pwned=' + ('pwned' in page.documentElement.dataset));
}});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs chromium")
    return found


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> html.Layout:
    paths = report_night.build(tmp_path_factory.mktemp("night") / "h")
    assert main(["--home", str(paths.home), "report", "garden"]) == 0
    return html.Layout.of(paths.grid_report("garden") / html.INDEX)


def dump(browser: str, page: Path, profile: Path) -> str:
    """The document as the browser has it after every script has run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_script_of_a_reply_runs(browser: str, layout: html.Layout, tmp_path: Path) -> None:
    page = next(path for path in sorted(layout.pages.iterdir()) if "dataset.pwned = 1" in path.read_text())
    dom = dump(browser, page, tmp_path)
    root = re.search("<html[^>]*>", dom)
    assert root is not None
    assert "pwned" not in root.group()
    assert "<title>baseline_360m_run1" in dom
    assert "&lt;script&gt;document.title='pwned'" in dom
    assert 'http-equiv="Content-Security-Policy"' in dom
    assert len(re.findall(r"<script\b", dom)) == 1
    assert 'class="theme"' in dom
    assert "Theme: as the system" in dom  # ours has run, under the policy


def test_the_map_is_used_by_keyboard_and_mouse(browser: str, layout: html.Layout, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(_KEYBOARD.format(index=layout.index.as_uri()))
    said = dict(re.findall("<li>([a-z]+)=([^<]*)</li>", dump(browser, wrapper, tmp_path / "profile")))
    assert said == {
        "tabs": "1",
        "first": "baseline_135m_run1",
        "right": "baseline_135m_run2",
        "down": "values_only_135m_run2",
        "end": "technical_role_360m_run3",
        "click": "baseline_135m_run2",
        "theme": "dark",
        "recoloured": "true",
        "sorted": "technical_role_135m_run1",
        "filtered": "1 of 18",
        "pwned": "false",
    }

"""Open a page in headless Chromium: what it logs, what it asks the network for, and what it became."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Everything that a browser asks for on its own account is switched off; what is left is the page's.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-extensions", "--disable-domain-reliability", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """console: messages of the page; requests: URLs beyond the file itself; dom: the page after its scripts ran."""

    console: list[str]
    requests: list[str]
    dom: str


def open_page(page: Path, scratch: Path, *, dark: bool = False) -> Opened:
    """`page` in a fresh profile under `scratch`."""
    log, profile = scratch / f"net-{dark}.json", scratch / f"profile-{dark}"
    flags = [*_FLAGS, f"--user-data-dir={profile}", "--window-size=1200,900", f"--log-net-log={log}", "--dump-dom"]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = re.findall(r"CONSOLE(?::\d+|\(\d+\))\] (.*)", done.stderr)
    return Opened(console, _requests(log), done.stdout)


def _requests(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # cut short when the browser ended
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    # The browser's own errands have no page as their initiator.
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    return sorted({one["url"] for one in asked if one["initiator"] != "not an origin"})

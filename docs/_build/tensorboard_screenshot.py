"""Photographs TensorBoard in headless Chromium, with the curves of a simulation in `workspace`, which is there:

``python docs/_build/tensorboard_screenshot.py`` writes docs/images/tensorboard.png.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.support.ui import WebDriverWait

from chromium import headless
from macros import PICTURES

SCREEN = {"width": 1200, "height": 760, "deviceScaleFactor": 1, "mobile": False}
PATIENCE_S = 60
"""How long TensorBoard may take to answer, and then to draw."""
SETTLED_S = 2
"""Lines grow into their places."""

LOOK = """
const found = (root, selector) => [...root.querySelectorAll(selector)].concat(
  ...[...root.querySelectorAll("*")].filter(one => one.shadowRoot).map(one => found(one.shadowRoot, selector)));
return found(document, arguments[0]).map(one => one.textContent.trim());
"""
"""Texts of the elements of a selector, also of those in the shadow trees of TensorBoard's components."""


@contextmanager
def served(workspace: Path) -> Iterator[str]:
    """TensorBoard's address, with all runs under `workspace`, whose path the page does not show."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", ".", "--port", port, "--load_fast", "false"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=workspace, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    """What the page says in the elements of a selector."""
    return browser.execute_script(LOOK, selector)


def photograph(browser: webdriver.Chrome, address: str, path: Path) -> None:
    """Opens the charts that the job has laid out, waits until they are drawn, and writes `path`, a PNG.

    Raises:
        selenium.common.exceptions.TimeoutException: if TensorBoard has no such charts.
    """
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SCREEN)
    patient = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[WebDriverException])
    patient.until(lambda one: one.get(address) is None)
    browser.get(f"{address}/#custom_scalars&_smoothingWeight=0")
    browser.refresh()
    patient.until(lambda one: texts(one, "path.line"))
    time.sleep(SETTLED_S)
    path.write_bytes(browser.get_screenshot_as_png())


def main() -> None:
    """Takes the picture."""
    with served(Path("workspace/server/simulate_job/tb_events")) as address, headless() as browser:
        photograph(browser, address, PICTURES / "tensorboard.png")


if __name__ == "__main__":
    main()

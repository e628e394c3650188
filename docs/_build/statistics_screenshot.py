"""Photographs the page of a simulated statistics job in `workspace`, in headless Chromium:

``python docs/_build/statistics_screenshot.py`` writes docs/images/statistics.png.
"""

from pathlib import Path

from selenium import webdriver

from chromium import headless
from macros import PICTURES

PAGE = Path("workspace/server/simulate_job/image_statistics.html")
SCREEN = {"width": 1240, "height": 1230, "deviceScaleFactor": 1, "mobile": False}


def photograph(browser: webdriver.Chrome, page: Path, path: Path) -> None:
    """Opens `page` and writes `path`, a PNG."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SCREEN)
    browser.get(page.resolve().as_uri())
    path.write_bytes(browser.get_screenshot_as_png())


def main() -> None:
    """Takes the picture."""
    with headless() as browser:
        photograph(browser, PAGE, PICTURES / "statistics.png")


if __name__ == "__main__":
    main()

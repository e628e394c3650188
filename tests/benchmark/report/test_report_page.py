"""The HTML page in headless Chromium: filter, sort, tooltips, console."""

A4 = {"width": 718, "height": 1047}
"""Pixels within Chromium's margins."""


def test_the_page_filters_sorts_and_explains(written, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    browser.get((written / "report.html").as_uri())
    sections = browser.find_elements(By.CSS_SELECTOR, "section[data-panel]")
    assert all(section.is_displayed() for section in sections)
    assert len(sections) == 2

    Select(browser.find_element(By.ID, "panel")).select_by_visible_text("ham10000 (out-of-domain), natural, default")
    assert [section.is_displayed() for section in sections] == [False, True]

    table = sections[1].find_element(By.TAG_NAME, "table")
    (header,) = [one for one in table.find_elements(By.TAG_NAME, "th") if one.text == "accuracy (%)"]

    def column() -> list[float]:
        cells = table.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")
        return [float(cell.text.split()[0]) for cell in cells]

    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    (header,) = [one for one in table.find_elements(By.TAG_NAME, "th") if one.text.startswith("exchanged")]
    header.find_element(By.TAG_NAME, "button").click()
    assert table.find_elements(By.CSS_SELECTOR, "tbody tr")[0].text.startswith("full 1,000,000")

    point = sections[1].find_element(By.CSS_SELECTOR, "svg .point")
    ActionChains(browser).move_to_element(point).perform()
    title = point.find_element(By.TAG_NAME, "title").get_attribute("textContent")
    assert title.startswith("linear_probe, imagenet: ")
    assert title.endswith("1,000 parameters")
    assert browser.execute_script("return arguments[0].matches(':hover')", point)

    Select(browser.find_element(By.ID, "panel")).select_by_index(0)
    assert all(section.is_displayed() for section in sections)
    too_wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(too_wide) <= 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**A4, "deviceScaleFactor": 1, "mobile": False})
    assert browser.execute_script(too_wide) <= 0
    assert browser.get_log("browser") == []

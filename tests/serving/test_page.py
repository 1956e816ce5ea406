"""The page in a real Chromium: Chinese typed in, an answer that streams, a talk that outlives a reload."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra `web`")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def page(pico_model: Path) -> Iterator[str]:
    """The address of a page over the pico model."""
    command = [sys.executable, "-m", "yangtuo", "web", "--model", str(pico_model), "--engine", "transformers"]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    with subprocess.Popen(
        [*command, "--template", "alpaca", "--listen-port", "8080"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"page is on (http://\S+)", line):
                break
        else:
            pytest.fail(said)
        yield found[1]
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1200,1100",
        "--lang=zh-CN",
    ):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": "zh-CN,zh"})
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(60)
    yield driver
    driver.quit()


def text_of(browser: Any, element: str, after: str = "") -> str:
    """The text of an element once something stands behind `after` in it, and no more comes."""
    end, last = time.monotonic() + 60, ""
    while time.monotonic() < end:
        text = str(browser.find_element("id", element).text)
        if after in text and len(text) > len(after) + 12 and text == last:
            return text
        last = text
        time.sleep(1)
    return last


def test_chinese_is_typed_and_answered_and_kept(page: str, browser: Any) -> None:
    browser.get(page)
    box = browser.find_element("css selector", "#say textarea")
    assert "请输入" in box.get_attribute("placeholder"), "the page speaks the browser's language"
    box.send_keys("你好，羊驼 </s>\n")
    said = text_of(browser, "talk", "你好，羊驼 </s>")
    assert "你好，羊驼 </s>" in said and len(said.split("</s>", 1)[1].strip()) > 0
    assert browser.find_elements("css selector", ".error") == []
    browser.refresh()
    assert "你好，羊驼 </s>" in text_of(browser, "talk", "你好，羊驼 </s>")

"""The page in a real Chromium: Chinese typed in, answers that stream, talks that are edited, kept and exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..inference.test_opening import adapter_of

pytest.importorskip("gradio", reason="needs the extra `web`")
pytest.importorskip("selenium", reason="needs selenium")

from selenium import webdriver

from yangtuo.serving.page import as_markdown, as_typed

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
PASSWORD = "羊驼 pass"
SAID = "你好，羊驼 </s> <b>1 < 2</b> &lt; `<i>`"


@contextmanager
def shown(*arguments: str, port: int = 0) -> Iterator[str]:
    """`yangtuo web` with these arguments, and the address of its page."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [sys.executable, "-m", "yangtuo", "web", "--listen-port", str(port), *arguments]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
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


@contextmanager
def browsing(downloads: Path) -> Iterator[Any]:
    """A browser of somebody who reads Chinese."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.add_argument("--lang=zh-CN")
    wanted = {"intl.accept_languages": "zh-CN,zh", "download.default_directory": str(downloads)}
    options.add_experimental_option("prefs", wanted)
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(20)
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(pico_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page over the pico model and an adapter on it, behind a password."""
    adapter = adapter_of(pico_model, tmp_path_factory.mktemp("page") / "tuned", 5, lora_alpha=64)
    given = ["--model", str(pico_model), "--adapter", f"tuned={adapter}", "--engine", "transformers"]
    with shown(*given, "--template", "alpaca", "--password", PASSWORD) as address:
        yield address


@pytest.fixture(scope="module")
def browser(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that has logged in."""
    with browsing(tmp_path_factory.mktemp("downloads")) as driver:
        driver.get(page)
        fields = driver.find_elements("css selector", "input, textarea")
        fields[0].send_keys("anyone")
        fields[1].send_keys(PASSWORD + "\n")
        driver.find_element("id", "say")
        yield driver


def wait_for(what: str, look: Any) -> Any:
    """What `look` gives once it gives something and the same again: nothing streams any more."""
    end, last = time.monotonic() + 60, None
    while time.monotonic() < end:
        value = look()
        if value and value == last:
            return value
        last = value
        time.sleep(0.7)
    pytest.fail(f"{what}: {last!r}")


def write(browser: Any, selector: str, text: str) -> None:
    """Types into a box that has just been shown, and again where the page, not ready yet, did not keep it."""

    def look() -> str:
        box = browser.find_element("css selector", selector)
        if box.get_attribute("value") == text:
            return text
        box.clear()
        box.send_keys(text)
        return ""

    wait_for(f"{text!r} in {selector}", look)


def turns(browser: Any) -> list[str]:
    """The messages as they are shown."""
    look = "return [...document.querySelectorAll('#talk [data-testid=user], #talk [data-testid=bot]')]"
    look += ".map(element => element.innerText.trim())"
    return list(browser.execute_script(look))


def answered(browser: Any, count: int) -> list[str]:
    """The messages once there are `count` of them, the last with something in it."""
    return list(wait_for(f"{count} messages", lambda: (t := turns(browser))[count - 1 :] and t[-1] and t))


def settle(browser: Any, **values: str) -> None:
    """Opens the settings of the tab that is shown, and sets numbers of its sliders."""
    browser.execute_script("[...document.querySelectorAll('button.label-wrap')].find(b => b.offsetParent).click()")
    for name, value in values.items():
        box = browser.find_element("css selector", f"#{name.replace('_', '-')} input[type=number]")
        box.clear()
        box.send_keys(value + "\t")


def log_in(page: str, password: str) -> int:
    body = urllib.parse.urlencode({"username": "anyone", "password": password}).encode()
    try:
        with urllib.request.urlopen(f"{page}login", body) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_password_is_wanted(page: str) -> None:
    page = page.rstrip("/") + "/"
    assert log_in(page, "wrong") == 400
    assert log_in(page, PASSWORD) == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{page}config")


@needs_browser
def test_chinese_is_typed_and_answered_and_kept(page: str, browser: Any) -> None:
    browser.get(page)
    box = browser.find_element("css selector", "#say textarea")
    assert "请输入" in box.get_attribute("placeholder"), "the page speaks the browser's language"
    box.send_keys(SAID + "\n")
    said = answered(browser, 2)
    assert " ".join(said[0].split()) == SAID.replace("`", ""), "what is typed is shown, to the last tag"
    assert browser.execute_script("return document.querySelectorAll('.error').length") == 0
    browser.refresh()
    assert answered(browser, 2) == said


@needs_browser
def test_a_talk_goes_on_is_edited_retried_and_exported(browser: Any, page: str) -> None:
    browser.get(page)
    browser.find_element("id", "new").click()
    wait_for("an empty talk", lambda: not turns(browser))
    settle(browser, max_tokens="8", temperature="0")  # what a tiny model draws by chance may be nothing at all
    box = browser.find_element("css selector", "#say textarea")
    for number, text in enumerate(("第一", "第二 <i>"), 1):
        box.send_keys(text + "\n")
        answered(browser, 2 * number)
    browser.find_element("css selector", "#talk button[title='重试']").click()
    assert len(answered(browser, 4)) == 4
    browser.find_elements("css selector", "#talk button[title='编辑']")[-1].click()
    browser.find_element("css selector", "#talk textarea").send_keys("改")
    browser.find_element("css selector", "#talk button[title='发送']").click()
    wait_for("the edited question", lambda: "第二 <i>改" in turns(browser))
    answered(browser, 4)
    browser.find_element("id", "export").click()
    file = wait_for("the exported talk", lambda: next(iter(browser.downloads.glob("*.json")), None))
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert [message["content"] for message in messages][::2] == ["第一", "第二 <i>改"]


@needs_browser
def test_two_models_stand_beside_each_other_and_text_is_continued(browser: Any, page: str) -> None:
    browser.get(page)
    tabs = {tab.text: tab for tab in browser.find_elements("css selector", "button[role=tab]")}
    tabs["对比"].click()
    write(browser, "#question textarea", "the cat")
    browser.find_element("id", "compare").click()

    def both() -> list[str]:
        found = [browser.find_element("css selector", f"#{side} textarea") for side in ("left", "right")]
        return [text for box in found if (text := box.get_attribute("value"))]

    left, right = wait_for("two answers", lambda: (texts := both())[1:] and texts)
    assert left != right
    tabs["续写"].click()
    write(browser, "#text textarea", "the cat sat")
    box = browser.find_element("css selector", "#text textarea")
    browser.find_element("id", "continue").click()
    text = wait_for("a longer text", lambda: (t := box.get_attribute("value")) != "the cat sat" and t)
    assert text.startswith("the cat sat")


@pytest.mark.parametrize(
    "text",
    [SAID, r"\<b> \\<b> a\b", "```\n<b> &amp;\n``` <b>", "`a` <b> `<c>", "1<2 & 3 &#10; <!-- -->", "中文<|im_end|>"],
)
def test_what_is_shown_leads_back_to_what_was_typed(text: str) -> None:
    assert as_typed(as_markdown(text)) == text

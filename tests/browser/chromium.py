"""Headless Chromium on MLflow's pages; `tests/browser` and `benchmarks/screenshots.py` look through it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.work import PATIENCE_S, mlflow_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 800
POLL_S = 0.3
# MLflow's assistant opens at the first visit and covers a quarter of the page.
NO_ASSISTANT = """
    localStorage['mlflow.assistant.panelOpen_v1'] = 'false';
    localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true';
"""


def missing() -> str | None:
    """Say what a headless browser lacks here, None where all is there."""
    there = {"Chromium": _browser(), "chromedriver": shutil.which("chromedriver")}
    return next((f"there is no {name} on the PATH" for name, path in there.items() if path is None), None)


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Pages:
    """The pages of one MLflow server in one browser window; screenshots go to ``output``."""

    width = WIDTH

    def __init__(self, driver: webdriver.Chrome, base: str, output: Path) -> None:
        self.driver, self.base, self.output = driver, base.rstrip("/"), output
        driver.get(f"{self.base}/health")
        driver.execute_script(NO_ASSISTANT)

    def open(self, page: str) -> None:
        """Open a page of `dinomaly_hd.runs.pages`, from a blank one, since only the hash differs."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.base}/{page}")

    def until(self, found: Callable[[], Any], *, what: str) -> Any:
        """Return what ``found`` returns once it is true; until then it may fail, as pages redraw."""
        waiting = WebDriverWait(
            self.driver, PATIENCE_S, poll_frequency=POLL_S, ignored_exceptions=(WebDriverException,)
        )
        return waiting.until(lambda _: found(), message=f"no {what} at {self.driver.current_url}")

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def first(self, selector: str, label: str = "") -> WebElement:
        """Wait for the first element of a selector whose text begins with ``label``."""
        what = f"{selector} {label!r}"
        found = self.until(
            lambda: [one for one in self.all(selector) if one.text.strip().startswith(label)], what=what
        )
        return found[0]  # type: ignore[no-any-return]

    def press(self, selector: str, label: str) -> None:
        """Click such an element as soon as it can be clicked."""

        def clicked() -> bool:
            self.first(selector, label).click()
            return True

        self.until(clicked, what=f"{selector} {label!r} to click")

    @contextlib.contextmanager
    def in_new_tab(self) -> Iterator[None]:
        """Go on in the page that a click has opened, and close it again."""
        here = self.driver.current_window_handle
        (tab,) = self.until(lambda: {*self.driver.window_handles} - {here}, what="new tab")
        self.driver.switch_to.window(tab)
        try:
            yield
        finally:
            self.driver.close()
            self.driver.switch_to.window(here)

    def reads(self, *words: str) -> None:
        """Wait until the page says all of these."""

        def said() -> bool:
            text = self.driver.execute_script("return document.body.innerText")
            return all(word in text for word in words)

        self.until(said, what=f"text {', '.join(map(repr, words))}")

    def hide(self, beginning: str) -> None:
        """Take the text that begins so out of sight."""
        self.reads(beginning)
        script = """
            for (const one of document.querySelectorAll("div, span"))
                if (one.innerText.startsWith(arguments[0])) one.style.visibility = "hidden"
        """
        self.driver.execute_script(script, beginning)

    def words(self) -> list[str]:
        """Return the words that the page says."""
        return str(self.driver.execute_script("return document.body.innerText")).split()

    def columns(self) -> list[str]:
        """Return the headers of the run table from left to right, as far as they are in sight."""
        headers = [head for head in self.all(".ag-header-cell") if head.text.strip()]
        return [head.text.strip() for head in sorted(headers, key=lambda head: head.location["x"])]

    def cells(self, column: str) -> list[str]:
        """Return what stands in a column of the run table, from top to bottom."""
        cells = self.all(f".ag-row .ag-cell[col-id='{column}']")
        return [cell.text for cell in sorted(cells, key=lambda cell: cell.location["y"])]

    def right_edge(self, selector: str) -> float:
        """Return how far such elements reach to the right, in pixels."""
        script = """
            return Math.max(...[...document.querySelectorAll(arguments[0])].map(
                one => one.getBoundingClientRect().right))
        """
        return float(self.driver.execute_script(script, selector))

    def bars(self, count: int) -> None:
        """Wait until the bar charts in sight have as many bars together."""
        bars = ".js-plotly-plot .barlayer .point"
        self.until(lambda: len(self.all(bars)) == count, what=f"bar charts of {count} bars")

    def compare_parameters(self, names: Sequence[str], *, metric: str) -> list[str]:
        """Choose the axes of the parallel coordinates; return what stands above them once they are drawn."""
        self.press("button", "Clear All")
        self.reads("Nothing to compare")
        for box, chosen in enumerate([names, [metric]]):
            for name in chosen:
                self.until(lambda box=box: self.all("input[role=combobox]")[box], what="box").send_keys(name)
                self.press(f".du-bois-light-select-item-option[title='{name}']", name)
            self.all("input[role=combobox]")[box].send_keys(Keys.ESCAPE)
        axes = ".parcoords .axis-title"
        wanted = len(names) + 1
        self.until(lambda: len(self.all(axes)) == wanted, what=f"{wanted} axes")
        return [axis.text for axis in sorted(self.all(axes), key=lambda axis: axis.location["x"])]

    def pictures(self, source: str) -> list[dict[str, Any]]:
        """Wait until all pictures whose address holds ``source`` are there; return their real sizes."""
        script = """
            return [...document.images].filter(image => image.src.includes(arguments[0])).map(
                image => ({source: image.src, width: image.naturalWidth, height: image.naturalHeight}))
        """

        def loaded() -> list[dict[str, Any]]:
            found = self.driver.execute_script(script, source)
            return found if all(picture["width"] > 0 for picture in found) else []

        return self.until(loaded, what=f"picture {source}")  # type: ignore[no-any-return]

    def into_sight(self, selector: str) -> None:
        """Scroll the first such element to the middle of the window."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.first(selector))

    def save(self, name: str) -> Path:
        """Write ``{name}.png`` and return its path."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path


@contextlib.contextmanager
def browsing(base: str, *, output: Path) -> Iterator[Pages]:
    """Yield the pages of a server in a browser that finds no host but 127.0.0.1."""
    options = Options()
    options.binary_location = str(_browser())
    for word in ("headless=new", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield Pages(driver, base, output)
    finally:
        driver.quit()


@contextlib.contextmanager
def served(uri: str, *, log: Path) -> Iterator[str]:
    """Yield the address of an `mlflow ui` of its own on a store."""
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    words = ("ui", "--workers", "1", "--backend-store-uri", uri)
    with mlflow_server(*words, answers="/health", log=log, **settings) as port:
        yield f"http://127.0.0.1:{port}"

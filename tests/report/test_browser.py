"""The report in a real browser: what a person does with it, at a desk and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretraining.report.page import ranked, write_page
from pretraining.report.runs import find_runs
from tests.browser import CHROMIUM, Page, browser
from tests.report.folders import HOSTILE, write_run

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: apt-get install chromium to check the report page"
)
DESK, PHONE = 1280, 390


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a spiked, a restarted and a dead run."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "first", lr=1e-2, spike=10)
    write_run(folder / HOSTILE.replace("/", "\N{FRACTION SLASH}"), restarted=200)
    write_run(folder / "third", lr=1e-4, exit_code=None, steps=250)
    path = folder / "report.html"
    path.write_text(write_page(ranked(find_runs([str(folder)]), "valid_loss"), "valid_loss"))
    return path


@pytest.fixture
def page(report: Path) -> Iterator[Page]:
    with browser() as page:
        yield page
        page.frames()
        assert page.messages == []
        assert [url for url in page.requests if url != report.resolve().as_uri()] == []


def chart(page: Page, number: int = 0) -> tuple[float, float, float, float]:
    """Left, top, width, height of where a chart's curves are."""
    script = "(({left, top, width, height}) => [left, top, width, height])"
    page.run(f"document.querySelectorAll('.u-over')[{number}].scrollIntoView({{block: 'center'}})")
    return tuple(page.run(f"{script}(document.querySelectorAll('.u-over')[{number}].getBoundingClientRect())"))  # type: ignore[return-value]


def values(page: Page) -> list[str]:
    page.frames()
    return page.run("[...document.querySelectorAll('.values')].map((e) => e.textContent)")


def hover(page: Page, part: float, number: int = 0) -> list[str]:
    """-> what is told above each chart with the mouse at this part of a chart's width."""
    left, top, width, height = chart(page, number)
    page.mouse("mouseMoved", left + min(part, 0.999) * width, top + height / 2)  # beyond it is outside
    return values(page)


def drag(page: Page, begin: float, end: float) -> None:
    left, top, width, height = chart(page)
    y = top + height / 2
    page.mouse("mouseMoved", left + begin * width, y)
    page.mouse("mousePressed", left + begin * width, y, button="left", clickCount=1)
    page.mouse("mouseMoved", left + (begin + end) / 2 * width, y, button="left")
    page.mouse("mouseMoved", left + end * width, y, button="left")
    page.mouse("mouseReleased", left + end * width, y, button="left", clickCount=1)


def step_at(page: Page, part: float) -> int:
    return int(re.match(r"[\d,]+", hover(page, part)[0])[0].replace(",", ""))  # type: ignore[index]


def range_of(page: Page) -> tuple[int, int]:
    """Of the steps that are shown; a mouse is within a pixel of the right edge."""
    return step_at(page, 0.0), round(step_at(page, 1.0) + 0.5, -1)


def test_at_a_desk(page: Page, report: Path) -> None:
    page.open(report, DESK)
    assert page.run("document.documentElement.scrollWidth") == DESK
    head = page.run("document.getElementById('lead').textContent")
    assert head.startswith("3 runs: 2 done, 1 died; best by valid_loss: first 3.0")
    names = page.run("[...document.querySelectorAll('#runs .name')].map((e) => e.textContent)")
    assert names[0] == "first" and HOSTILE.replace("/", "\N{FRACTION SLASH}") in names
    assert page.run("document.querySelectorAll('img').length") == 0
    assert HOSTILE in page.run("document.getElementById('samples').textContent")
    assert page.run("document.querySelectorAll('.uplot').length") == page.run(
        "document.querySelectorAll('#charts .chart').length"
    )


def test_hover_tells_the_values_of_all_runs_in_all_charts(page: Page, report: Path) -> None:
    page.open(report, DESK)
    told = hover(page, 0.5)
    assert re.match(r"150 steps(\d\.\d{4}){3}$", told[0]) and all(told[:6])
    assert range_of(page) == (0, 300)
    page.mouse("mouseMoved", 5, 5)
    assert not any(values(page))


def test_a_drag_zooms_all_charts_and_a_double_click_takes_it_back(page: Page, report: Path) -> None:
    page.open(report, DESK)
    drag(page, 0.4, 0.6)
    assert range_of(page) == (120, 180)
    assert hover(page, 0.5, number=2)[2].startswith("150 steps")
    left, top, width, height = chart(page)
    for count in (1, 2):
        page.mouse("mousePressed", left + width / 2, top + height / 2, button="left", clickCount=count)
        page.mouse("mouseReleased", left + width / 2, top + height / 2, button="left", clickCount=count)
    assert range_of(page) == (0, 300)


def test_every_control(page: Page, report: Path) -> None:
    page.open(report, DESK)
    change = """(id, key, value) => {
        const element = document.getElementById(id);
        element[key] = value;
        element.dispatchEvent(new Event('input'));
    }"""
    page.run(f"({change})('axis', 'value', 'tokens')")
    assert hover(page, 0.5)[0].startswith("150k tokens")
    page.run(f"({change})('axis', 'value', 'hours')")
    assert hover(page, 1.0)[0].startswith("0.0166")
    page.run(f"({change})('axis', 'value', 'step'); ({change})('log-x', 'checked', true)")
    assert step_at(page, 0.0) == 1 and step_at(page, 0.5) == 17  # the root of 300
    page.run(f"({change})('log-y', 'checked', true); ({change})('smooth', 'value', 0)")
    page.run("document.querySelectorAll('#runs input')[0].click()")
    assert len(re.findall(r"\d\.\d{4}", hover(page, 0.5)[0])) == 2
    page.run("document.getElementById('rest').open = true; document.getElementById('starts').open = true")
    page.frames()
    assert page.run("document.querySelectorAll('.uplot').length") == page.run(
        "document.querySelectorAll('.chart').length"
    )
    assert "without a word" in page.run("document.getElementById('starts').textContent")
    for _ in range(3):  # all of them off
        page.run("document.querySelector('#runs tr:not(.off) input')?.click()")
    page.frames()
    assert page.run("document.querySelectorAll('.uplot').length") == 0


def test_one_early_spike_does_not_flatten_the_rest(page: Page, report: Path) -> None:
    page.open(report, DESK)
    labels = "document.querySelectorAll('.uplot')[0].parentElement"
    assert page.run(f"{labels} !== null")
    colored = """((canvas) => {
        const {data, width, height} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const rows = new Set();
        for (let i = 0; i < data.length; i += 4) {
            const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
            if (data[i + 3] > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 90) rows.add(Math.floor(i / 4 / width));
        }
        return rows.size / height;
    })(document.querySelector('canvas'))"""
    assert page.run(colored) > 0.6  # of a range to 50 the curves between 3 and 6 would take a tenth


def test_on_a_phone(page: Page, report: Path) -> None:
    page.open(report, PHONE, height=800)
    assert page.run("document.documentElement.scrollWidth") == PHONE
    cards = page.run("[...document.querySelectorAll('#runs tbody tr')].map((e) => e.getBoundingClientRect().height)")
    assert max(cards) < 150
    touched = page.run("[...document.querySelectorAll('#runs label')].map((e) => e.getBoundingClientRect().height)")
    assert min(touched) >= 40
    left, top, width, height = chart(page)
    y = top + height / 2
    page.touch("touchStart", (left + 0.5 * width, y))
    assert values(page)[0].startswith("15")
    page.touch("touchMove", (left + 0.3 * width, y))
    page.touch("touchMove", (left + 0.2 * width, y))
    assert values(page)[0].startswith(("59 ", "60 ", "61 "))
    page.touch("touchEnd")
    page.touch("touchStart", (left + 0.4 * width, y), (left + 0.6 * width, y))
    page.touch("touchMove", (left + 0.2 * width, y), (left + 0.8 * width, y))
    page.touch("touchMove", (left + 0.0 * width, y), (left + 1.0 * width, y))
    page.touch("touchEnd")
    assert abs(step_at(page, 0.02) - 120) < 8 and abs(step_at(page, 0.98) - 180) < 8
    page.run("document.getElementById('reset').click()")
    assert step_at(page, 0.98) > 280


def test_in_the_dark(page: Page, report: Path) -> None:
    page.open(report, DESK, dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.run(ground)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page.frames()
    assert dark == "rgb(20, 23, 26)" and page.run(ground) == "rgb(255, 255, 255)"


def test_a_long_run_opens_at_once(page: Page, tmp_path: Path, report: Path) -> None:
    write_run(tmp_path / "long", steps=100_000)
    path = tmp_path / "report.html"
    path.write_text(write_page(find_runs([str(tmp_path / "long")]), "valid_loss"))
    assert path.stat().st_size < 1.5e6
    page.open(path, DESK)
    page.requests.clear()
    timing = "performance.getEntriesByType('navigation')[0]"
    seconds = page.run(f"({timing}.loadEventEnd - {timing}.responseEnd) / 1000")
    assert 0 < seconds < 5  # a third of a second on a machine that does nothing else

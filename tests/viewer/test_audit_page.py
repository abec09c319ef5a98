"""The audit page in a real browser, and what its routes refuse."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from viewer.chromium import chromium
from viewer.viewed import TOKEN, Served, build, known_masks, served, write_photos

from data_engine.dataset.reader import MaskDataset
from data_engine.human_audit.answers import Answer, AnswerBook, AnswerSession, last_answers, now
from data_engine.human_audit.design import Design
from data_engine.human_audit.new_sample import make_sample
from data_engine.human_audit.sample import Sample
from data_engine.viewer import app, audit_api


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "in", broken=False)


@pytest.fixture
def masks(photos: Path, tmp_path: Path) -> Path:
    build(tmp_path / "masks", str(photos), lambda number, height, width: known_masks(number, height, width, 8)[5:])
    return tmp_path / "masks"


@pytest.fixture
def sample(masks: Path) -> Sample:
    return make_sample(MaskDataset(str(masks)), "first", Design(size=6))


@pytest.fixture
def server(masks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    if audit_api.routes not in app.EXTRA:
        monkeypatch.setattr(app, "EXTRA", (*app.EXTRA, audit_api.routes))
    with served(masks) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def errors() -> list[str]:
    """What goes wrong on the page; none may be left when the test is over."""
    return []


@pytest.fixture
def page(browser: Any, server: Served, errors: list[str]) -> Iterator[Any]:
    """Closed before the server is, so that nothing it still asks for counts as an error."""
    context = browser.new_context(viewport={"width": 1100, "height": 720})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    yield opened
    context.close()
    assert errors == []


def ask(server: Served, path: str, body: Any = None) -> tuple[int, Any]:
    """(status, JSON) of a request with the token; a POST where there is a body."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/api/{path}",
        None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
        {"Authorization": f"Bearer {TOKEN}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def shown(page: Any, position: int) -> None:
    """Waits until a mask of the sample is there with its picture."""
    page.wait_for_selector(f"#stage[data-position='{position}'] .picture[src]")
    page.wait_for_function("!document.querySelector('#panel').classList.contains('busy')")


def begin(page: Any, server: Served, who: str) -> None:
    page.goto(server.address.replace("/?", "/audit?"))
    page.fill("#who", who)
    page.keyboard.press("Enter")
    shown(page, 0)


def own(sample: Sample, who: str) -> dict[tuple[str, int], Answer]:
    return last_answers(AnswerBook(sample.root, "first").read()).get(who, {})


def test_three_masks_by_keyboard_then_it_goes_on_where_it_stopped(page, server, sample):
    begin(page, server, "A  Reader")
    page.wait_for_timeout(400)
    page.keyboard.press("a")
    shown(page, 1)
    page.keyboard.press("n")
    page.keyboard.type("aura is missing")  # letters of a note judge nothing
    page.keyboard.press("Enter")
    page.keyboard.press("4")
    shown(page, 2)
    page.keyboard.press("u")
    shown(page, 3)
    assert page.inner_text("#progress-text") == "3 of 6 judged"
    page.reload()
    shown(page, 3)
    assert page.inner_text("#progress-text") == "3 of 6 judged"
    answers = own(sample, "A Reader")
    assert list(answers) == sample.keys[:3]
    first, second, third = answers.values()
    assert (first.verdict, second.verdict, third.verdict) == ("accept", "reject", "unsure")
    assert (second.reason, second.note) == ("part_missing", "aura is missing")
    assert 0.4 <= first.seconds < 10
    assert len(list((Path(sample.root) / "_audits/first/answers").iterdir())) == 3


def test_the_space_bar_presses_the_button_that_has_the_focus(page, server, sample):
    page.goto(server.address.replace("/?", "/audit?"))
    page.fill("#who", "A")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # Begin
    shown(page, 0)
    page.focus("[data-verdict=reject]")
    page.keyboard.press("Space")
    shown(page, 1)
    assert [answer.verdict for answer in own(sample, "A").values()] == ["reject"]
    page.click("#toggle-fill")  # the mouse leaves the space bar to the mask
    page.keyboard.press("Space")
    assert "bare" in page.get_attribute("#stage", "class")


def test_who_does_not_say_who_judges_can_still_do_so(page, server, sample):
    page.goto(server.address.replace("/?", "/audit?"))
    page.wait_for_selector("#ask[open]")
    for _ in range(2):  # browsers may ignore the first, and never the second
        page.keyboard.press("Escape")
    page.wait_for_selector("#ask:not([open])", state="attached")
    assert "Nobody judges yet" in page.inner_text("#stage")
    page.click("#person")
    page.fill("#who", "A")
    page.keyboard.press("Enter")
    shown(page, 0)
    assert page.inner_text("#person") == "A"


def test_back_judges_again_and_the_end_shows_the_estimate(page, server, sample):
    other = AnswerSession(sample.root, "first")
    other.add([Answer(image_id=i, mask_id=m, who="B", verdict="accept", answered_at=now()) for i, m in sample.keys[:4]])
    begin(page, server, "A")
    for position in range(5):
        page.keyboard.press("a" if position else "r")
        shown(page, position + 1)
    assert "%" not in page.inner_text("body")
    for position in (4, 3, 2, 1, 0):
        page.keyboard.press("z")
        shown(page, position)
    assert page.get_attribute(".verdicts [data-verdict=reject]", "aria-pressed") == "true"
    page.keyboard.press("a")
    shown(page, 5)
    page.keyboard.press("r")
    page.wait_for_selector("#finish:not([hidden])")
    text = page.inner_text("#finish")
    assert "83.3 %" in text  # five of six
    assert "Cohen's kappa" in text
    assert [answer.verdict for answer in own(sample, "A").values()].count("accept") == 5
    page.keyboard.press("z")
    shown(page, 5)
    assert page.is_visible("#panel")


def test_the_mask_lies_on_its_picture_and_can_be_taken_off(page, server, sample):
    """The outline's color is where the mask's border is, and nowhere once the space bar is pressed."""
    begin(page, server, "A")
    look = """() => {
      const lines = document.querySelector('.overlay-lines');
      const style = getComputedStyle(lines);
      const data = lines.getContext('2d').getImageData(0, 0, lines.width, lines.height).data;
      let count = 0, left = 1e9, right = -1;
      for (let i = 3; i < data.length; i += 4) if (data[i]) {
        count++;
        const column = Math.floor((i >> 2) / lines.width);
        left = Math.min(left, column);
        right = Math.max(right, column);
      }
      return [count, left, right, style.visibility];
    }"""
    page.wait_for_function(f"({look})()[0] > 0")
    count, left, right, visibility = page.evaluate(look)
    row = sample.masks.slice(0, 1).to_pylist()[0]
    assert count > 0
    assert (left, right) == (row["bbox_x"], row["bbox_x"] + row["bbox_w"] - 1)
    assert visibility == "visible"
    page.keyboard.press("f")
    assert page.evaluate("getComputedStyle(document.querySelector('.overlay-fill')).visibility") == "hidden"
    assert page.evaluate(look)[3] == "visible"
    page.keyboard.press(" ")
    assert page.evaluate(look)[3] == "hidden"
    before = page.evaluate("document.querySelector('.sheet').style.transform")
    page.keyboard.press("w")
    assert page.evaluate("document.querySelector('.sheet').style.transform") != before
    page.keyboard.press("a")
    shown(page, 1)
    page.wait_for_function(f"({look})()[0] > 0")
    assert page.evaluate(look)[3] == "visible"  # each mask is seen before it is judged


def test_time_stands_still_while_the_tab_is_hidden(page, server, sample):
    page.goto(server.address.replace("/?", "/static/audit.html?"))
    seconds = page.evaluate(
        """async () => {
          const { Watch } = await import('/static/audit_watch.js');
          const tab = Object.assign(new EventTarget(), { hidden: false });
          let now = 0;
          const watch = new Watch(tab, () => now);
          const turn = (hidden) => { tab.hidden = hidden; tab.dispatchEvent(new Event('visibilitychange')); };
          watch.start();
          now = 2000; turn(true);
          now = 60000; turn(false);
          now = 61500;
          const first = watch.seconds();
          watch.start();
          now = 62000; watch.stop();
          now = 90000;
          return [first, watch.seconds()];
        }"""
    )
    assert seconds == [3.5, 0.5]


def test_a_verdict_that_cannot_be_stored_stays_on_the_page(page, server, sample, errors):
    begin(page, server, "A")
    page.route("**/api/audit/answer", lambda route: route.fulfill(status=500, json={"error": "no space left"}))
    page.keyboard.press("a")
    page.wait_for_selector("#problem:not([hidden])")
    assert "Not stored: no space left" in page.inner_text("#problem")
    assert page.inner_text("#progress-text") == "0 of 6 judged"
    assert ["500" in error for error in errors] == [True]
    errors.clear()
    page.unroute("**/api/audit/answer")
    page.keyboard.press("a")
    shown(page, 1)
    assert len(own(sample, "A")) == 1


def test_a_mask_that_did_not_come_is_not_judged(page, server, sample, errors):
    page.route("**/api/audit/mask?*position=1", lambda route: route.abort())
    begin(page, server, "A")
    page.keyboard.press("a")
    page.wait_for_selector("#stage .notice:has-text('not there any more')")
    page.keyboard.press("a")
    page.keyboard.press("w")
    page.wait_for_timeout(300)
    assert list(own(sample, "A")) == sample.keys[:1]
    page.unroute("**/api/audit/mask?*position=1")
    page.reload()
    shown(page, 1)
    page.keyboard.press("r")
    shown(page, 2)
    assert list(own(sample, "A")) == sample.keys[:2]
    errors[:] = [error for error in errors if "ERR_FAILED" not in error]


def test_without_an_audit_the_page_says_how_to_draw_one(page, server):
    page.goto(server.address.replace("/?", "/audit?"))
    page.wait_for_selector(".notice:not([hidden])")
    assert "data-engine audit-sample" in page.inner_text(".notice")


def test_nothing_that_could_sway_is_told(server, sample):
    AnswerSession(sample.root, "first").add(
        [Answer(image_id=i, mask_id=m, who="B", verdict="reject", answered_at=now()) for i, m in sample.keys]
    )
    status, mask = ask(server, "audit/mask?name=first&position=0")
    assert status == 200
    assert not {"predicted_iou", "stability_score"} & set(mask)
    assert ask(server, "audit?name=first&who=A")[1]["answers"] == {}
    status, refused = ask(server, "audit/report?name=first&who=A")
    assert status == 400
    assert "6 masks are left" in refused["error"]
    assert ask(server, "audit/report?name=first&who=B")[1]["precision"]["share"] == 0


def test_the_later_verdict_counts_though_the_clock_was_set_back(server, sample):
    image_id, mask_id = sample.keys[0]
    ahead = Answer(
        image_id=image_id, mask_id=mask_id, who="A", verdict="accept", answered_at=now() + timedelta(hours=1)
    )
    AnswerSession(sample.root, "first").add([ahead])
    assert ask(server, "audit?name=first&who=A")[1]["answers"]["0"]["verdict"] == "accept"
    for verdict in ("reject", "unsure"):
        given = {"name": "first", "who": "A", "position": 0, "verdict": verdict}
        assert ask(server, "audit/answer", given)[0] == 200
        assert ask(server, "audit?name=first&who=A")[1]["answers"]["0"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"verdict": "good"}, 400, "verdict 'good'"),
        ({"who": ""}, 400, "is no name"),
        ({"position": 6}, 404, "the sample has 0 to 5"),
        ({"position": "0"}, 404, "position '0'"),
        ({"name": "other"}, 404, "no audit named 'other'"),
        ({"name": "../first"}, 400, "cannot name an audit"),
        ({"seconds": -4}, 400, "-4 seconds"),
        ({"note": ["x"]}, 400, "use text"),
        ({"note": "\ud800"}, 400, "half of a character"),
        ({"note": "x" * 70_000}, 413, "at most 65,536 bytes"),
        (b"{", 400, "no JSON"),
        (b"[" * 60_000, 400, "no JSON"),
        (b"[]", 400, "a JSON object"),
    ],
)
def test_what_is_no_answer_is_refused_and_leaves_nothing(server, sample, body, status, message):
    whole = {"name": "first", "who": "A", "position": 0, "verdict": "accept", "seconds": 1}
    found, said = ask(server, "audit/answer", {**whole, **body} if isinstance(body, dict) else body)
    assert (found, message in said["error"]) == (status, True), said
    assert own(sample, "A") == {}

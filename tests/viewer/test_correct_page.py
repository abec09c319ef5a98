"""The page where masks are corrected, in a real browser with a real model, and what its routes refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from corrections.corrected import mask_facts
from pycocotools import mask as coco
from typer.testing import CliRunner
from viewer.chromium import chromium
from viewer.viewed import Served, build, known_masks, served, write_photos

from data_engine.cli import app
from data_engine.corrections.edit_book import EditBook
from data_engine.corrections.edits import Edit, EditSession
from data_engine.corrections.standing import Standing, standing
from data_engine.dataset.reader import MaskDataset
from data_engine.masks import rle
from data_engine.pipeline.plan import read_plan
from data_engine.sam.predictor import SamPredictor
from data_engine.sam.segmenter import load_segmenter
from data_engine.viewer.run import ViewedRun


def three_discs(number: int, height: int, width: int) -> list[np.ndarray]:
    return known_masks(number, height, width, 8)[5:]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "in")


@pytest.fixture
def masks(photos: Path, tmp_path: Path) -> Path:
    build(tmp_path / "masks", str(photos), three_discs)
    return tmp_path / "masks"


@pytest.fixture
def server(masks: Path) -> Iterator[Served]:
    with served(masks) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    """Closed before the server is, so that nothing it still asks for counts as an error; none may be left."""
    errors: list[str] = []
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
        f"http://127.0.0.1:{server.port}/api/correct{path}",
        None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
        {"Authorization": f"Bearer {server.token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def edits_of(root: Path, image_id: str) -> list[Edit]:
    plan = read_plan(str(root))
    assert plan is not None
    return EditBook(str(root), plan.fingerprint).read().get(image_id, [])


def stands(root: Path, image_id: str) -> Standing:
    return standing(3, edits_of(root, image_id))


def shown(page: Any, image_id: str) -> None:
    """Waits until an image is there with its picture, and the model has seen it."""
    page.wait_for_selector(f"#stage[data-image='{image_id}'] .picture[src]")
    page.wait_for_load_state("networkidle")


def begin(page: Any, server: Served, who: str = "Ada") -> None:
    page.goto(server.address.replace("/?", "/correct?"))
    page.fill("#who", who)
    page.keyboard.press("Enter")
    shown(page, "astronaut.jpg")


def at(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a place of the picture, as shares of its sides, is on the page."""
    box = page.query_selector(".sheet").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def stored(page: Any, masks: int) -> None:
    """Waits until so many masks stand, as the panel says it."""
    page.wait_for_selector(f"#image-id:text-matches(', {masks} masks$')")


def test_masks_are_added_by_clicks_and_a_box_and_taken_back(page, server, masks, photos):
    begin(page, server)
    page.keyboard.press("a")
    page.mouse.click(*at(page, 0.4, 0.6))
    page.wait_for_selector("#candidates .button:nth-child(2)")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    stored(page, 4)
    page.mouse.click(*at(page, 0.5, 0.5))  # it goes on adding
    page.wait_for_selector("#candidates .button")
    page.mouse.click(*at(page, 0.9, 0.1), button="right")
    page.wait_for_selector("#candidates:empty", state="attached")
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("Enter")
    stored(page, 5)
    page.mouse.move(*at(page, 0.25, 0.5))
    page.mouse.down()
    page.mouse.move(*at(page, 0.75, 0.95), steps=3)
    page.mouse.up()
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("Enter")
    stored(page, 6)
    page.keyboard.press("Control+z")
    stored(page, 5)

    one, two, three, undo = edits_of(masks, "astronaut.jpg")
    assert [one.action, two.action, three.action, undo.action] == ["add", "add", "add", "undo"]
    assert (one.who, one.answer, one.point_label, two.point_label, three.point_label) == ("Ada", 1, [1], [1, 0], [2, 3])
    assert undo.of == three.edit_id
    assert one.seconds is not None
    assert 0 < one.seconds < 60
    # The mask can be made again from its row.
    predictor = SamPredictor(load_segmenter(one.model))
    assert (one.model, one.model_sha256) == ("starter", predictor.segmenter.checkpoint.sha256)
    pixels = ViewedRun(str(masks)).pixels("astronaut.jpg")
    predictor.set_image(pixels)
    for edit, multimask in ((one, True), (two, False)):
        points = np.stack([edit.point_x, edit.point_y], 1)
        found, scores, _ = predictor.predict(points, np.array(edit.point_label), multimask_output=multimask)
        kept = rle.decode(rle.from_counts_string(edit.counts, *pixels.shape[:2]))
        assert (kept != found[np.argsort(-scores)[edit.answer]]).sum() <= 2  # on the threshold: sums in another order


def test_a_selected_mask_is_deleted_or_made_anew(page, server, masks):
    begin(page, server)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#facts-section:not([hidden])")
    assert "the model alone" in page.inner_text("#facts")
    page.keyboard.press("x")
    stored(page, 2)
    assert list(stands(masks, "astronaut.jpg").masks) == [1, 2]
    page.keyboard.press("z")
    stored(page, 3)
    page.keyboard.press("ArrowLeft")  # the last one
    page.keyboard.press("e")
    page.wait_for_selector("#accept:not([disabled])")  # the model has answered to the mask's box
    page.mouse.click(*at(page, 0.5, 0.5))
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("z")  # the click
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("Enter")
    page.wait_for_selector("#draft-buttons", state="hidden")
    first, second, third = stands(masks, "astronaut.jpg").masks.items()
    assert (first, second) == ((0, None), (1, None))
    assert (third[1].action, third[1].mask_id, third[1].point_label) == ("replace", 2, [2, 3])


def test_a_mask_is_painted_and_erased(page, server, masks):
    begin(page, server)
    before = MaskDataset(str(masks))["astronaut.jpg"].mask(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("b")  # on the selected mask as it is
    page.mouse.move(*at(page, 0.1, 0.1))
    page.mouse.down()
    page.mouse.move(*at(page, 0.3, 0.1), steps=4)
    page.mouse.up()
    page.keyboard.press("r")
    page.mouse.click(*at(page, 0.2, 0.1))
    page.mouse.click(*at(page, 0.9, 0.9))
    page.keyboard.press("z")  # the last stroke
    page.keyboard.press("Enter")
    page.wait_for_selector("#draft-buttons", state="hidden")
    (edit,) = edits_of(masks, "astronaut.jpg")
    assert (edit.action, edit.mask_id, edit.point_x, edit.model, edit.predicted_iou) == ("replace", 0, None, None, None)
    after = rle.decode(rle.from_counts_string(edit.counts, 200, 200))
    assert (edit.area, edit.painted) == (after.sum(), (after != before).sum())
    assert after[20, 25]
    assert after[20, 55]
    assert not after[20, 40]
    assert np.array_equal(after[60:], before[60:])

    page.keyboard.press("a")  # a new one: clicks, and what is missing with the brush
    page.mouse.click(*at(page, 0.4, 0.6))
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("b")
    page.mouse.click(*at(page, 0.95, 0.05))
    page.keyboard.press("Enter")
    stored(page, 4)
    edit = edits_of(masks, "astronaut.jpg")[-1]
    assert (edit.action, edit.point_label, edit.model, edit.answer) == ("add", [1], "starter", 0)
    assert 0 < edit.painted < 1000
    assert rle.decode(rle.from_counts_string(edit.counts, 200, 200))[10, 190]


def test_strokes_and_their_run_lengths_are_those_of_numpy_and_pycocotools(page, server):
    begin(page, server)
    rng = np.random.default_rng(0)
    given = []
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        ends = rng.uniform(-10, 50, (4, 2)).round(3)
        ends[3] = ends[2]  # a press that does not move
        given.append([height, width, ends.tolist(), float(rng.uniform(0.3, 15))])
    told = page.evaluate(
        """async (all) => {
          const { boxOf, encode, nothing, stroke, union, without } = await import("/static/paint.js");
          return all.map(([height, width, [a, b, c, d], radius]) => {
            const one = stroke(a, b, radius, height, width);
            const two = stroke(c, d, radius, height, width);
            const masks = [one, two, union(one, two), without(one, two), nothing(height, width)];
            return masks.map((mask) => [encode(mask), mask.area, boxOf(mask)]);
          });
        }""",
        given,
    )
    for (height, width, ends, radius), masks in zip(given, told, strict=True):
        one, two = (capsule(np.array(ends[i : i + 2]), radius, height, width) for i in (0, 2))
        for wanted, (counts, area, box) in zip(
            (one, two, one | two, one & ~two, np.zeros_like(one)), masks, strict=True
        ):
            encoded = coco.encode(np.asfortranarray(wanted.astype(np.uint8)))
            assert (counts, area) == (encoded["counts"].decode(), wanted.sum())
            assert box == coco.toBbox(encoded).tolist()


def capsule(ends: np.ndarray, radius: float, height: int, width: int) -> np.ndarray:
    """HxW bool: pixels whose middle is within `radius` of the line between two points."""
    y, x = np.mgrid[:height, :width] + 0.5
    along = ends[1] - ends[0]
    length = (along**2).sum()
    t = (
        np.clip(((x - ends[0][0]) * along[0] + (y - ends[0][1]) * along[1]) / length, 0, 1)
        if length
        else np.zeros(x.shape)
    )
    return np.hypot(x - ends[0][0] - t * along[0], y - ends[0][1] - t * along[1]) <= radius


def test_a_dataset_in_a_store_is_corrected(bucket, masks):
    fsspec.filesystem("s3").put(f"{masks}/", f"{bucket}/masks/", recursive=True)
    with served(f"{bucket}/masks") as server:
        assert ask(server, "/edit", {"id": "astronaut.jpg", "who": "Ada", "action": "delete", "key": 1})[0] == 200
        status, said = ask(
            server, "/edit", {"id": "astronaut.jpg", "who": "Ada", "action": "add", "points": [[50, 60, 1]]}
        )
    assert (status, said["masks"]["key"][:2], said["masks"]["who"]) == (200, [0, 2], [None, None, "Ada"])
    with served(f"{bucket}/masks") as server:
        assert ask(server, "/edit", {"id": "astronaut.jpg", "who": "Ada", "action": "undo"})[1]["n_masks"] == 2


def test_it_goes_on_where_it_stopped_and_says_who_was_there(page, server, masks):
    begin(page, server)
    page.keyboard.press("d")
    shown(page, "chelsea.jpg")
    assert page.inner_text("#progress-text") == "1 of 7 images done"
    page.goto(server.address.replace("/?", "/correct?"))
    shown(page, "chelsea.jpg")  # the first that is left
    page.keyboard.press("k")
    shown(page, "astronaut.jpg")
    assert page.inner_text("#done-by") == "this one, by Ada"
    page.keyboard.press("z")
    page.wait_for_selector("#progress-text:text('0 of 7')")
    assert page.inner_text("#progress-text") == "0 of 7 images done"
    page.click("#home")  # the viewer, at the same image
    page.wait_for_selector("body[data-ready]")
    assert "image=astronaut.jpg" in page.url
    page.click("text=Correct")
    shown(page, "astronaut.jpg")


def test_the_end_is_said_and_what_was_passed_over_comes_again(page, server, masks):
    begin(page, server)
    page.keyboard.press("j")  # the first is passed over
    shown(page, "chelsea.jpg")
    ids = [image.image_id for image in MaskDataset(str(masks)) if image.row["status"] == "ok"]
    for image_id in ids[2:]:
        assert ask(server, "/edit", {"id": image_id, "who": "Bob", "action": "done"})[0] == 200
    page.keyboard.press("d")
    shown(page, "astronaut.jpg")
    page.keyboard.press("d")
    page.wait_for_selector("#problem:text('Every image is done')")
    assert page.inner_text("#progress-text") == "7 of 7 images done"


def test_a_mask_that_is_being_made_is_not_lost_by_a_wrong_key(page, server, masks):
    begin(page, server)
    page.keyboard.press("a")
    page.mouse.click(*at(page, 0.4, 0.6))
    page.wait_for_selector("#accept:not([disabled])")
    page.keyboard.press("j")
    page.wait_for_selector("#problem:not([hidden])")
    assert "Enter keeps it, Esc drops it" in page.inner_text("#problem")
    page.keyboard.press("d")
    assert edits_of(masks, "astronaut.jpg") == []
    page.keyboard.press("Escape")
    page.wait_for_selector("#accept[disabled]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#draft-buttons", state="hidden")
    page.keyboard.press("j")
    shown(page, "chelsea.jpg")


def test_two_people_on_one_image_are_told(page, server, masks):
    begin(page, server)
    page.keyboard.press("ArrowRight")
    other = {"id": "astronaut.jpg", "who": "Bob", "action": "delete", "key": 0}
    assert ask(server, "/edit", other)[0] == 200
    assert ask(server, "/edit", {**other, "who": "Ada"}) == (
        400,
        {"error": "that mask is not there any more: somebody else has changed it"},
    )
    assert ask(server, "/edit", {"id": "astronaut.jpg", "who": "Ada", "action": "undo"})[0] == 400  # it is Bob's
    assert list(stands(masks, "astronaut.jpg").masks) == [1, 2]


def test_several_people_are_given_images_of_their_own(server, masks, tmp_path):
    def first(who):
        return ask(server, f"?who={who}")[1]["first"]["id"]

    assert first("Ada") == "astronaut.jpg"  # alone
    given = {first(who) for who in "BCDEFGHIJKLMNOP"}
    assert len(given) > 1
    for who in ("Ada", "Bob"):  # each comes to all of them, once
        here, seen = first(who), set()
        while here is not None and here not in seen:
            seen.add(here)
            following = ask(server, f"/next?id={here}&who={who}&step=1&left=1")[1]["image"]
            here = following and following["id"]
        assert len(seen) == 7
    # Another server knows them from what they have done.
    assert ask(server, "/edit", {"id": first("Ada"), "who": "Ada", "action": "done"})[0] == 200
    with served(masks) as other:
        theirs = ask(other, "?who=Bob")[1]["first"]["id"]
        assert theirs == first("Bob")


def test_what_comes_next_is_told_from_the_image_and_not_from_where_it_was(server, masks):
    """Positions change while a dataset grows."""
    for position in ("0", "5", "99", ""):
        asked = f"/next?id=chelsea.jpg&position={position}&who=Ada&step="
        assert ask(server, f"{asked}-1&left=0")[1]["image"]["id"] == "astronaut.jpg"
        assert ask(server, f"{asked}1&left=1")[1]["image"] == {"id": "coffee.jpg", "position": 2}


def test_images_that_came_meanwhile_are_next(photos, tmp_path):
    def grow(shards):
        build(tmp_path / "out", str(photos), three_discs, shards=shards, overrides=("input.images_per_shard=3",))

    grow(1)
    with served(tmp_path / "out") as server:
        here = ask(server, "?who=Ada")[1]["first"]["id"]
        for _ in range(3):
            assert ask(server, "/edit", {"id": here, "who": "Ada", "action": "done"})[0] == 200
            following = ask(server, f"/next?id={here}&who=Ada&step=1&left=1")[1]["image"]
            here = following["id"] if following else here
        assert following is None
        before = ask(server, "?who=Ada")[1]
        grow(2)
        following = ask(server, f"/next?id={here}&who=Ada&step=1&left=1")[1]["image"]
        assert ask(server, "?who=Ada")[1]["images"] > before["images"] == before["done"] == 3
        assert ask(server, f"/image?id={following['id']}&who=Ada")[1]["done_by"] == []


def test_what_follows_a_mask_of_a_clock_that_is_ahead_counts(server, masks):
    plan = read_plan(str(masks))
    ahead = datetime.now(timezone.utc) + timedelta(days=1)
    made = Edit(
        image_id="astronaut.jpg",
        action="add",
        n_masks=3,
        who="Bob",
        edited_at=ahead,
        fingerprint=plan.fingerprint,
        code_version="0",
        **mask_facts(np.eye(200, dtype=bool)),
    )
    made = EditSession(str(masks)).add(made)
    change = {"id": "astronaut.jpg", "who": "Ada"}
    status, said = ask(server, "/edit", {**change, "action": "delete", "key": 0})
    assert (status, said["masks"]["key"]) == (200, [1, 2, made.edit_id])
    status, said = ask(server, "/edit", {**change, "action": "delete", "key": made.edit_id})
    assert (status, said["masks"]["key"]) == (200, [1, 2])
    status, said = ask(server, "/edit", {**change, "action": "undo"})
    assert (status, said["masks"]["key"]) == (200, [1, 2, made.edit_id])  # the last one first, whatever the clock said


def test_a_viewer_that_was_started_anew_says_how_to_go_on(browser, masks):
    with served(masks) as server:
        port = server.port
        page = browser.new_context().new_page()
        begin(page, server)
    with served(masks, port=port, token="another") as server:
        page.keyboard.press("ArrowRight")
        page.keyboard.press("x")
        page.wait_for_selector("#problem:text('Open the address that')")
        other = page.context.new_page()  # opened there, the first goes on too
        other.goto(server.address)
        page.keyboard.press("x")
        stored(page, 2)
        page.context.close()


POINT = {"points": [[5, 5, 1]]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/answers", {"points": []}, 400, "needs a click or a box"),
        ("/answers", {"points": [[5, 5, 0]]}, 400, "click on the thing first"),
        ("/answers", {"points": [[500, 5, 1]]}, 400, "use a place in the 200 x 200 image"),
        ("/answers", {"points": [[5, 5]]}, 400, "points: a list of"),
        ("/answers", {"box": [5, 5, 5, 9]}, 400, "smaller than a pixel"),
        ("/answers", {"points": [[float("nan"), 5, 1]]}, 400, "points: a list of"),
        ("/answers", {**POINT, "id": "zz-broken.jpg"}, 400, "failed when it was masked"),
        ("/answers", {**POINT, "id": "none.jpg"}, 404, "no image 'none.jpg'"),
        ("/answers", {**POINT, "id": None}, 400, "id is missing"),
        ("/edit", {**POINT, "action": "add", "answer": 7}, 400, "answer 7: the model has given"),
        ("/edit", {"action": "add"}, 400, "needs a click or a box"),
        ("/edit", {"action": "add", "painted": "zzzz"}, 400, "run lengths of 200 x 200 pixels"),
        ("/edit", {"action": "add", "painted": "PRW1"}, 400, "nothing is left of the mask"),
        ("/edit", {"action": "add", "painted": 7}, 400, "run lengths of 200 x 200 pixels"),
        ("/edit", {"action": "paint"}, 400, "use one of add, replace"),
        ("/edit", {"action": "done", "who": " "}, 400, "is no name"),
        ("/edit", {"action": "done", "seconds": -1}, 400, "seconds -1"),
        ("/edit", {"action": "delete", "key": True}, 400, "not there any more"),
        ("/edit", b"[]", 400, "is a JSON object"),
        ("/edit", b"{", 400, "no JSON"),
        ("/edit", b" " * 5_000_000, 413, "at most"),
    ],
)
def test_wrong_requests_store_nothing(server, masks, path, body, status, message):
    if isinstance(body, dict):
        body = {"id": "astronaut.jpg", "who": "Ada", **body}
    answered, said = ask(server, path, body)
    assert (answered, message in said["error"]) == (status, True), said
    assert not (masks / "_corrections").exists()


def test_an_original_that_has_changed_is_not_shown_to_the_model(tmp_path):
    photos = write_photos(tmp_path / "photos", side=60)
    build(tmp_path / "masks", str(photos), three_discs)
    (photos / "astronaut.jpg").write_bytes((photos / "chelsea.jpg").read_bytes())
    with served(tmp_path / "masks") as server:
        status, said = ask(server, "/prepare", {"id": "astronaut.jpg"})
        assert (status, "cannot be shown to the model: changed since" in said["error"]) == (500, True), said
        # Masks can still be deleted: that needs no model.
        assert ask(server, "/edit", {"id": "astronaut.jpg", "who": "Ada", "action": "delete", "key": 0})[0] == 200


def test_killed_at_once_nothing_that_was_kept_is_lost(masks):
    """The command itself, killed as soon as it has answered; another one goes on, and the result is a dataset."""
    command = [sys.executable, "-c", "from data_engine.cli import main; main()", "view", str(masks), "--no-browser"]
    add = {"id": "chelsea.jpg", "who": "Ada", "action": "add", "points": [[50, 60, 1]], "answer": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        address, _, token = process.stdout.readline().strip().partition("/?token=")
        server = Served(int(address.rpartition(":")[2]), token)
        status, said = ask(server, "/edit", add)
        process.kill()
    assert (status, said["n_masks"]) == (200, 4)
    with served(masks) as server:
        status, said = ask(server, "/edit", {"id": "chelsea.jpg", "who": "Ada", "action": "done"})
    assert (status, said["done_by"], said["masks"]["who"]) == (200, ["Ada"], [None, None, None, "Ada"])
    applied = CliRunner().invoke(app, ["apply-corrections", str(masks), str(masks.parent / "done"), "--only-done"])
    assert applied.exit_code == 0, applied.output
    assert len(MaskDataset(str(masks.parent / "done"))["chelsea.jpg"]) == 4

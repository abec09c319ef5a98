"""The page in a real browser: what it draws is what the dataset says."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from viewer.chromium import WatchedPage, chromium
from viewer.viewed import build, known_masks, served, write_photos

from data_engine.dataset.reader import MaskDataset

FILL = "overlay-fill"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`out` and `other`: two datasets of the same images, of which one failed and one has no original any more."""
    folder = tmp_path_factory.mktemp("page")
    photos = write_photos(folder / "photos")
    build(folder / "out", str(photos), lambda *size: known_masks(*size, count=9))
    build(folder / "other", str(photos), lambda *size: known_masks(*size, count=6))
    (photos / "coffee.jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def viewer(folder):
    with served(folder / "out") as server:
        yield server


@pytest.fixture
def opened(browser, viewer):
    """Opens the page with a query; nothing may have gone wrong on it in the end."""
    watched = []

    def open_page(query=""):
        watched.append(WatchedPage(browser, f"{viewer.address}&{query}"))
        return watched[-1].page

    yield open_page
    for each in watched:
        each.page.close()
        assert each.errors == []
        assert each.hosts == {f"127.0.0.1:{viewer.port}"}


def canvas(page, name=FILL, pane=0):
    """HxWx4 uint8, of a canvas whose axes are swapped."""
    width, height, data = page.evaluate(
        """([name, pane]) => {
          const canvas = document.querySelectorAll(`.${name}`)[pane];
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return [canvas.width, canvas.height, btoa(Array.from(data, (v) => String.fromCharCode(v)).join(""))];
        }""",
        [name, pane],
    )
    import base64

    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4).swapaxes(0, 1)


def colours(page, count):
    return page.evaluate(
        "async (n) => { const c = await import('/static/colours.js'); return [...Array(n).keys()].map(c.ofNumber); }",
        count,
    )


def drawn(image, wanted, palette):
    """What pycocotools says the canvas should hold: large masks first."""
    expected = np.zeros((image.row["height"], image.row["width"], 4), np.uint8)
    area = image.masks["area"].to_numpy()
    for i in sorted(wanted, key=lambda i: -area[i]):
        rle = {"size": expected.shape[:2], "counts": image.masks["counts"][i].as_py()}
        expected[coco.decode(rle).astype(bool)] = [*palette[i], 255]
    return expected


def shown_query(page):
    return {name: value[0] for name, value in parse_qs(urlsplit(page.url).query).items()}


def settled(page):
    """After the page's own shorter timers, however slow the page is."""
    page.evaluate("() => new Promise((done) => setTimeout(done, 250))")


@pytest.mark.parametrize("image_id", ["astronaut.jpg", "dog.jpg", "turned.jpg"])
def test_the_overlay_is_what_pycocotools_decodes(opened, folder, image_id):
    page = opened(f"image={image_id}")
    image = MaskDataset(str(folder / "out"))[image_id]
    assert np.array_equal(canvas(page), drawn(image, range(9), colours(page, 9)))
    page.keyboard.press("m")
    assert not canvas(page).any()


def test_the_decoder_agrees_with_pycocotools(opened):
    rng = np.random.default_rng(1)
    masks = [rng.random((h, w)) < p for h, w, p in [(1, 1, 1), (1, 1, 0), (7, 1, 0.5), (1, 9, 0.5), (50, 40, 0.01)]]
    masks += [rng.random((rng.integers(1, 60), rng.integers(1, 60))) < rng.random() for _ in range(40)]
    large = np.zeros((3000, 2000), bool)  # runs of millions of pixels: five characters
    large[5:, 1998:] = True
    masks += [large, np.ones_like(large)]
    given = []
    for mask in masks:
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [0]])
        edges = np.flatnonzero(np.diff(flat)).tolist()
        given.append([rle["counts"].decode(), *mask.shape, edges, int(mask.sum())])
    page = opened()
    wrong = page.evaluate(
        """async (given) => {
          const { decode } = await import("/static/rle.js");
          return given.filter(([counts, height, width, edges, area]) => {
            const mask = decode(counts, height, width);
            return mask.area !== area || String([...mask.runs]) !== String(edges);
          }).length;
        }""",
        given,
    )
    assert wrong == 0


def test_damaged_run_lengths_are_named(opened):
    damaged = ["", "0", "9", "oooooooooo", "1\x7f", "é1", "p", "T1T1T1"]
    told = opened().evaluate(
        """async (all) => {
          const { decode } = await import("/static/rle.js");
          const told = (counts) => { try { decode(counts, 3, 2); return ""; } catch (error) { return error.message; } };
          return all.map(told);
        }""",
        damaged,
    )
    assert all("run lengths" in text for text in told)


def test_overlaps_agree_with_pycocotools(opened, folder):
    image = next(iter(MaskDataset(str(folder / "out"))))
    size = [image.row["height"], image.row["width"]]
    counts = image.masks["counts"].to_pylist()
    rles = [{"size": size, "counts": text} for text in counts]
    ours = opened().evaluate(
        """async ([counts, height, width]) => {
          const { decode, iou } = await import("/static/rle.js");
          const masks = counts.map((text) => decode(text, height, width));
          return masks.map((a) => masks.map((b) => iou(a, b)));
        }""",
        [counts, *size],
    )
    assert np.allclose(ours, coco.iou(rles, rles, [0] * len(rles)))


def test_huge_images_are_drawn_at_every_second_pixel(opened):
    mask = np.zeros((6000, 5000), np.uint8, order="F")
    y, x = np.mgrid[:6000, :5000]
    mask[(y - 2500) ** 2 + (x - 3001) ** 2 < 1700**2] = 1
    mask[3000:3007, ::3] = 1
    rle = coco.encode(mask)
    box = coco.toBbox(rle).astype(int).tolist()
    points = np.stack([np.random.default_rng(0).integers(0, n // 2, 4000) for n in (5000, 6000)], 1)
    points[:500, 1] = np.tile([1500, 1501, 1502, 1503, 1504], 100)
    drawn, outlined = opened().evaluate(
        """async ([counts, box, points]) => {
          const { Overlay } = await import("/static/overlay.js");
          const overlay = new Overlay(document.createElement("div"));
          const [x, y, w, h] = box.map((value) => [value]);
          const masks = { counts: [counts], bbox_x: x, bbox_y: y, bbox_w: w, bbox_h: h };
          overlay.load({ height: 6000, width: 5000, masks });
          overlay.show([0], () => [10, 20, 30], 4);
          overlay.highlight(0, 4);
          return [overlay.fill, overlay.edge].map((canvas) => {
            const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return points.map(([x, y]) => data[4 * (x * width + y) + 3] > 0);
          });
        }""",
        [rle["counts"].decode(), box, points.tolist()],
    )
    expected = mask[::2, ::2][points[:, 1], points[:, 0]].astype(bool).tolist()
    assert drawn == expected
    assert outlined == expected
    assert 1000 < sum(expected) < 3000


@pytest.mark.parametrize(("height", "width"), [(50, 66_000), (66_000, 50)])
def test_images_longer_than_a_canvas_are_drawn(opened, height, width):
    mask = np.ones((height, width), np.uint8, order="F")
    mask[:, : width // 2] = 0
    drawn = opened().evaluate(
        """async ([counts, height, width]) => {
          const { Overlay } = await import("/static/overlay.js");
          const overlay = new Overlay(document.createElement("div"));
          const box = { bbox_x: [0], bbox_y: [0], bbox_w: [width], bbox_h: [height] };
          overlay.load({ height, width, masks: { counts: [counts], ...box } });
          overlay.show([0], () => [10, 20, 30], 1);
          const { data } = overlay.fill.getContext("2d").getImageData(0, 0, overlay.fill.width, overlay.fill.height);
          return [data[3], data[data.length - 1]];
        }""",
        [coco.encode(mask)["counts"].decode(), height, width],
    )
    assert drawn == [0, 255]


def test_sliders_filter_at_once(opened, folder):
    page = opened("image=astronaut.jpg")
    image = MaskDataset(str(folder / "out"))["astronaut.jpg"]
    palette = colours(page, 9)
    tests = [
        ("predicted_iou-least", "PageUp", 3, lambda low: image.masks["predicted_iou"].to_numpy() >= low, "iou", 0),
        (
            "stability_score-most",
            "ArrowLeft",
            60,
            lambda high: image.masks["stability_score"].to_numpy() <= high,
            "stability",
            1,
        ),
        (
            "area-most",
            "ArrowLeft",
            50,
            lambda high: image.masks["area"].to_numpy() / image.row["width"] / image.row["height"] <= high,
            "area",
            1,
        ),
    ]
    for name, key, times, passes, parameter, end in tests:
        page.focus(f"[name={name}]")
        for _ in range(times):
            page.keyboard.press(key)
        page.evaluate("() => new Promise(requestAnimationFrame)")
        settled(page)
        bound = float(shown_query(page)[parameter].split("..")[end])
        wanted = np.flatnonzero(passes(bound))
        assert 0 < len(wanted) < 9
        assert np.array_equal(canvas(page), drawn(image, wanted, palette))
        assert page.inner_text("#mask-count") == f"{len(wanted)} of 9"
        assert page.locator("#masks .row:visible").count() == len(wanted)
        page.click("#reset")
        settled(page)
        assert parameter not in shown_query(page)
        assert page.inner_text("#mask-count") == "9"


def test_a_link_leads_back_to_what_it_was_taken_from(opened, folder):
    query = "image=dog.jpg&mask=3&iou=0.55..0.9&area=..0.6&colour=stability&sort=masks&descending=1&points=1&search=g"
    page = opened(query)
    assert page.inner_text(".caption .id") == "dog.jpg"
    assert page.inner_text("#facts-title").lower() == "mask 3"
    assert page.get_attribute("[data-colour=stability]", "aria-checked") == "true"
    assert (page.input_value("#sort"), page.input_value("#search")) == ("masks", "g")
    image = MaskDataset(str(folder / "out"))["dog.jpg"].masks.to_pylist()
    passed = [
        m["mask_id"]
        for m in image
        if 0.55 <= round(m["predicted_iou"], 5) <= 0.9 and m["area"] / m["width"] / m["height"] <= 0.6
    ]
    assert page.locator(".marks circle").count() == len(passed) < 9
    assert canvas(page, "overlay-edge").any()
    before = page.locator("#masks .row:visible").all_inner_texts()
    page.goto(page.url)  # as by someone who was sent the link
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#masks .row:visible").all_inner_texts() == before
    assert "token" not in page.url


def test_the_keyboard_moves_through_images_and_masks(opened):
    page = opened("image=astronaut.jpg&sort=id")
    names = [text for text in page.locator("#images .name").all_inner_texts() if text]

    def at():
        settled(page)
        return shown_query(page)["image"], shown_query(page).get("mask")

    assert at() == (names[0], None)
    page.keyboard.press("j")
    assert at() == (names[1], None)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert at() == (names[1], None)
    page.keyboard.press("l")
    page.keyboard.press("ArrowRight")
    assert at() == (names[1], "1")
    page.keyboard.press("h")
    assert at() == (names[1], "0")
    page.focus("#masks")  # in their list, the arrows go through the masks
    page.keyboard.press("ArrowDown")
    assert at() == (names[1], "1")
    page.keyboard.press("Escape")
    assert at() == (names[1], None)
    page.keyboard.press("End")
    assert at() == (names[-1], None)
    page.go_back()
    assert at() == (names[1], None)
    page.keyboard.press("/")
    page.keyboard.type("trk?j")  # letters are letters in a text field
    assert page.input_value("#search") == "trk?j"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    assert "next image" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")


def test_the_mask_under_the_pointer_is_outlined_and_explained(opened, folder):
    page = opened("image=astronaut.jpg")
    image = MaskDataset(str(folder / "out"))["astronaut.jpg"]
    height, width = image.row["height"], image.row["width"]
    area = image.masks["area"].to_numpy()
    box = page.locator(".sheet").bounding_box()
    for x, y in [
        (width / 3, height / 2),
        (2.5, 2.5),
        (width - 0.5, height - 0.5),
        (width / 3 + height / 4, height / 2),
    ]:
        page.mouse.move(box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / height)
        hit = [i for i in range(9) if image.mask(i)[int(y), int(x)]]
        expected = min(hit, key=lambda i: area[i])
        assert page.inner_text("#facts-title").lower() == f"mask {expected}"
        assert f"{area[expected]:,} px" in page.inner_text("#facts")
        assert page.inner_text("#tip").startswith(f"#{expected}")
        outlined = canvas(page, "overlay-edge")[..., 3] > 0
        assert outlined.any()
        assert not (outlined & ~image.mask(expected)).any()
    page.mouse.move(5, 5)
    assert page.inner_text("#facts-title").lower() == "image"
    assert not canvas(page, "overlay-edge").any()


def test_a_failed_image_and_a_missing_original_say_why(opened):
    page = opened("image=zz-broken.jpg")
    assert "failed (corrupt): its header is damaged" in page.inner_text(".notice")
    page = opened("image=coffee.jpg")
    page.wait_for_selector(".sheet.bare")
    assert "The original is not shown: not found" in page.inner_text(".notice")
    assert canvas(page).any()  # the masks are


def test_searching_and_sorting(opened):
    page = opened()
    page.fill("#search", "o")
    settled(page)
    settled(page)
    names = [text for text in page.locator("#images .row:visible .name").all_inner_texts() if text]
    assert names
    assert all("o" in name for name in names)
    page.select_option("#status", "failed")
    settled(page)
    assert page.locator("#images .row:visible .name").all_inner_texts() == ["zz-broken.jpg"]
    assert page.inner_text("#count") == "1 image"


def test_a_list_of_millions_shows_any_row(opened):
    """Browsers count no further than some ten million pixels."""
    seen = opened().evaluate(
        """async (wanted) => {
          const { VirtualList } = await import("/static/virtual_list.js");
          const root = document.createElement("div");
          root.style.cssText = "position: fixed; inset: 0; height: 600px; overflow-y: auto";
          document.body.append(root);
          const parts = { label: "all", rowHeight: 60, create: () => document.createElement("div"), pick() {} };
          const list = new VirtualList(root, { ...parts, fill: (row, index) => (row.textContent = index) });
          list.show(11_000_000);
          return wanted.map((index) => {
            list.select(index);
            const row = [...root.querySelectorAll(".row")].find((each) => Number(each.textContent) === index);
            const box = row?.getBoundingClientRect();
            const rows = root.querySelectorAll(".row").length;
            return [row?.getAttribute("aria-selected"), box?.top >= -1 && box?.bottom <= 601, rows < 40];
          });
        }""",
        [0, 5_432_100, 5_432_101, 10_999_999, 10_999_990, 3, 7],
    )
    assert seen == [["true", True, True]] * 7


def test_rows_that_did_not_come_are_asked_for_again(opened):
    rows = opened().evaluate(
        """async () => {
          const { ImageList } = await import("/static/image_list.js");
          const answer = (offset) => ({ total: 250, offset, rank: null, ...Object.fromEntries(
            ["position", "id", "error", "width", "height", "masks", "predicted_iou", "stability", "area"]
              .map((name) => [name, [...Array(100).keys()].map((i) => offset + i)])) });
          let failing = false;
          window.fetch = async (path) => {
            if (failing) throw new TypeError("connection lost");
            return new Response(JSON.stringify(answer(Number(new URLSearchParams(path.split("?")[1]).get("offset")))));
          };
          const list = new ImageList();
          await list.open({});
          failing = true;
          const lost = list.get(120);
          await new Promise((done) => list.addEventListener("failed", () => setTimeout(done)));
          failing = false;
          const waiting = list.get(120);
          await new Promise((done) => list.addEventListener("rows", done));
          return [lost, waiting, list.get(120).id];
        }"""
    )
    assert rows == [None, None, 120]


def test_two_runs_side_by_side(browser, folder):
    with served(folder / "out", folder / "other") as server:
        watched = WatchedPage(browser, f"{server.address}&image=astronaut.jpg&mask=2")
        page = watched.page
        palette = colours(page, 9)
        for pane, (root, count) in enumerate([("out", 9), ("other", 6)]):
            image = MaskDataset(str(folder / root))["astronaut.jpg"]
            assert np.array_equal(canvas(page, pane=pane), drawn(image, range(count), palette))
        assert page.locator(".caption b").all_inner_texts() == ["out", "other"]
        assert "mask 2, IoU 1.000" in page.inner_text("#facts")  # the same ring is in both
        assert all(canvas(page, "overlay-edge", pane).any() for pane in (0, 1))
        page.mouse.move(500, 300)
        page.mouse.wheel(0, -300)
        first, second = page.locator(".sheet").evaluate_all("all => all.map((each) => each.style.transform)")
        assert first == second  # one zooms, both do
        assert watched.errors == []
        page.close()


def test_a_growing_dataset_shows_what_comes(browser, tmp_path):
    photos = write_photos(tmp_path / "photos", side=64, broken=False)
    settings = ("input.images_per_shard=4",)
    build(tmp_path / "out", str(photos), shards=1, overrides=settings)
    with served(tmp_path / "out") as server:
        page = WatchedPage(browser, server.address).page
        assert page.inner_text("#count") == "4 images"
        assert "57 % done" in page.inner_text("#totals")
        build(tmp_path / "out", str(photos), overrides=settings)
        page.click("#refresh")
        page.wait_for_function("() => document.getElementById('count').textContent === '7 images'")
        assert "complete" in page.inner_text("#totals")
        assert page.is_hidden("#refresh")
        assert json.loads(page.evaluate("fetch('/api/info').then((a) => a.text())"))["runs"][0]["images"] == 7
        page.close()


def test_another_dataset_on_the_same_port_shows_its_own_pictures(browser, tmp_path):
    """As after `data-engine view a --port 8000` and then `view b --port 8000`, in a browser that keeps pictures."""
    middle = """async () => {
      const image = document.querySelector(".picture");
      await image.decode();
      const context = document.createElement("canvas").getContext("2d");
      context.drawImage(image, 0, 0);
      return [...context.getImageData(30, 20, 1, 1).data.slice(0, 3)];
    }"""
    context = browser.new_context()
    page, port, seen = context.new_page(), 0, []
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 40), colour).save(tmp_path / name / "one.jpg", quality=95)
        build(tmp_path / f"masks-{name}", str(tmp_path / name))
        with served(tmp_path / f"masks-{name}", port=port, token=f"the-token-of-{name}") as server:
            port = server.port
            page.goto(server.address)
            page.wait_for_selector("body[data-ready]")
            page.wait_for_selector(".picture[src]")
            seen.append(page.evaluate(middle))
    context.close()
    assert [np.argmax(pixel) for pixel in seen] == [0, 2]

"""How fluid the viewer is on a large dataset, in a real browser: first paint, filters, images, lists, sorts.

    python benchmarks/viewer_speed.py measure /tmp/large --images 10000 --masks 200    # made first, if it is not there
    python benchmarks/viewer_speed.py pictures masks/ other/ docs/images               # the pictures of docs/viewer.md

Needs Chromium and `pip install playwright`. Every figure is the median (and the worst) of several tries in the page.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as coco

from data_engine.config import load_config
from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.dataset.manifest import make_manifest
from data_engine.dataset.writer import FinishedFile, SliceWriter
from data_engine.pipeline.plan import make_plan, write_plan

HEIGHT, WIDTH = 1500, 2250  # as SA-1B's images are
POOL = 400  # distinct masks
PHOTOS = 20  # distinct pictures


def make_dataset(root: Path, images: int, masks: int) -> None:
    """A dataset of blobs over noise, written by the project's own writer. The originals are links to a few files."""
    rng = np.random.default_rng(0)
    photos = _make_photos(root / "photos", images, rng)
    plan = write_plan(str(root / "out"), make_plan(str(root / "photos"), load_config("sa1b", [])))
    pool = _make_masks(rng)
    records = []
    for planned in plan.shards:
        writer = SliceWriter(plan.metadata())
        for number, file in enumerate(planned.shard.files):
            picks = rng.integers(0, POOL, masks)
            writer.add(_image_row(file, planned.id, masks, photos[number % PHOTOS]), _columns(pool, picks, rng))
        count = len(planned.shard.files)
        files = writer.finish()
        records.append(
            CommitRecord(
                fingerprint=plan.fingerprint,
                shard=planned.id,
                slice=0,
                first_image=0,
                final=True,
                images=_write(root / "out", f"images/{planned.id}.parquet", files[0]),
                masks=_write(root / "out", f"masks/{planned.id}.parquet", files[1]),
                totals=Totals(images=count, masks=count * masks, candidates=count * masks),
                owner="o" * 32,
                attempt="1",
            )
        )
        sys.stderr.write(f"\r{len(records)} of {len(plan.shards)} slices")
    manifest, table = make_manifest(plan.fingerprint, records, "o" * 32)
    (root / "out/_manifest").mkdir()
    (root / "out" / manifest.commits.file).write_bytes(table)
    (root / "out/_manifest.json").write_bytes(manifest.to_json())


def _make_photos(folder: Path, images: int, rng: np.random.Generator) -> list[bytes]:
    """`images` files, of which PHOTOS differ; returns the sha256 of those."""
    folder.mkdir(parents=True)
    digests = []
    for number in range(PHOTOS):
        small = Image.fromarray(rng.integers(0, 256, (30, 45, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((WIDTH, HEIGHT)).filter(ImageFilter.GaussianBlur(3)).save(buffer, "JPEG", quality=90)
        (folder / f"photo-{number:06d}.jpg").write_bytes(buffer.getvalue())
        digests.append(hashlib.sha256(buffer.getvalue()).digest())
    for number in range(PHOTOS, images):
        os.link(folder / f"photo-{number % PHOTOS:06d}.jpg", folder / f"photo-{number:06d}.jpg")
    return digests


def _make_masks(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Blobs with rough borders, their areas from 0.01 % to 20 % of the image, evenly in the logarithm."""
    pool = []
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    for _ in range(POOL):
        radius = np.sqrt(np.exp(rng.uniform(np.log(1e-4), np.log(0.2))) * HEIGHT * WIDTH / np.pi)
        wobble = 1 + 0.25 * np.sin(angles * rng.integers(2, 5) + rng.uniform(0, 6)) + rng.normal(0, 0.05, 64)
        cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        outline = np.stack([cx + radius * wobble * np.cos(angles), cy + radius * wobble * np.sin(angles)], 1)
        clipped = np.clip(outline, 0, [WIDTH - 1, HEIGHT - 1])
        rle = coco.merge(coco.frPyObjects([clipped.ravel().tolist()], HEIGHT, WIDTH))
        x, y, w, h = (int(value) for value in coco.toBbox(rle))
        counts = rle["counts"].decode()
        pool.append({"counts": counts, "area": int(coco.area(rle)), "box": (x, y, w, h)})
    return pool


def _columns(pool: list[dict[str, Any]], picks: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    chosen = [pool[i] for i in picks]
    count = len(chosen)
    boxes = np.array([mask["box"] for mask in chosen])
    constant = {"height": HEIGHT, "width": WIDTH, "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT}
    return {
        **{name: [value] * count for name, value in constant.items()},
        **{f"bbox_{side}": boxes[:, i] for i, side in enumerate("xywh")},
        "area": [mask["area"] for mask in chosen],
        "predicted_iou": rng.uniform(0.88, 1.02, count),
        "stability_score": rng.uniform(0.95, 1, count),
        "point_x": boxes[:, 0] + boxes[:, 2] / 2,
        "point_y": boxes[:, 1] + boxes[:, 3] / 2,
        "crop_layer": [0] * count,
        "counts": [mask["counts"] for mask in chosen],
    }


def _image_row(file: Any, shard: str, masks: int, digest: bytes) -> dict[str, Any]:
    counts = {f"n_rejected_{reason}": 0 for reason in ("iou", "stability", "edge", "nms", "area")}
    none = dict.fromkeys(("phash", "error_type", "error_message"))
    return {
        **{"image_id": file.image_id, "uri": file.uri, "shard": shard, "sha256": digest, "status": "ok"},
        **{"width": WIDTH, "height": HEIGHT, "n_masks": masks, "n_candidates": masks, **counts, **none},
        **{"decode_ms": 20.0, "generate_ms": 900.0},
    }


def _write(root: Path, name: str, file: FinishedFile) -> Part:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(file.data)
    return Part(file=name, size=len(file.data), sha256=file.sha256, rows=file.rows)


@contextmanager
def opened(*arguments: str, width: int = 1440, height: int = 900) -> Iterator[tuple[Any, str, float]]:
    """(a page, the viewer's address, seconds until the command printed it)."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    begin = time.perf_counter()
    command = [sys.executable, "-c", "from data_engine.cli import main; main()", "view", *arguments, "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    started = time.perf_counter() - begin
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=executable, args=["--no-sandbox"] if os.geteuid() == 0 else []
            )
            yield browser.new_page(viewport={"width": width, "height": height}), address, started
            browser.close()
    finally:
        server.terminate()
        server.wait(10)


FRAME = "const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
FILTER = (
    FRAME
    + """
  const input = document.querySelector("[name=predicted_iou-least]");
  const times = [];
  for (let i = 0; i < 40; i++) {
    await frame();
    const begin = performance.now();
    input.value = 5 + 4 * i;
    input.dispatchEvent(new Event("input"));
    const drawn = performance.now();
    await frame();
    times.push([drawn - begin, performance.now() - begin]);
  }
  document.getElementById("reset").click();
  return times;"""
)
HOVER = (
    FRAME
    + """
  const stage = document.querySelector(".stage");
  const box = stage.getBoundingClientRect();
  const times = [];
  for (let i = 0; i < 60; i++) {
    await frame();
    const begin = performance.now();
    const at = { clientX: box.left + box.width * (0.1 + 0.013 * i), clientY: box.top + box.height * (0.2 + 0.01 * i) };
    stage.dispatchEvent(new PointerEvent("pointermove", { ...at, bubbles: true }));
    times.push([performance.now() - begin]);
  }
  return times;"""
)
NEXT = (
    FRAME
    + """
  const times = [];
  for (let i = 0; i < 12; i++) {
    await new Promise((done) => setTimeout(done, 700));
    const title = document.querySelector(".caption .id");
    const before = title.textContent;
    const begin = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    const late = begin + 10_000;
    while (title.textContent === before && performance.now() < late) await new Promise((done) => setTimeout(done, 1));
    const drawn = performance.now();
    await frame();
    times.push([drawn - begin, performance.now() - begin]);
  }
  return times;"""
)
SCROLL = """
  const list = document.getElementById("images");
  const times = [];
  let last = performance.now();
  for (let i = 0; i < 150; i++) {
    list.scrollTop += 900;
    await new Promise((done) => requestAnimationFrame(done));
    const now = performance.now();
    times.push([now - last, list.querySelectorAll(".row").length]);
    last = now;
  }
  return times;"""
ASK = """
  const times = [];
  for (const query of %s) {
    const begin = performance.now();
    for (;;) {
      const answer = await (await fetch(`/api/images?limit=100&${query}`)).json();
      if (!answer.reading) break;
    }
    times.push([performance.now() - begin]);
  }
  return times;"""


def measure(root: Path) -> dict[str, Any]:
    """Milliseconds but for "rows in the list". CPU is what one try costs the page's main thread, however busy the
    machine is; the rest is time on the clock."""
    results: dict[str, Any] = {}
    with opened(str(root / "out")) as (page, address, started):
        results["command until its address"] = [1000 * started]
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        results["first contentful paint"] = [
            page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
        ]
        results["masks drawn"] = [page.evaluate("() => performance.getEntriesByName('masks-drawn')[0].startTime")]
        page.wait_for_timeout(2000)

        cpu = page.context.new_cdp_session(page)
        cpu.send("Performance.enable", {"timeDomain": "threadTicks"})

        def spent() -> float:
            metrics = cpu.send("Performance.getMetrics")["metrics"]
            return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

        def run(code: str, name: str | None = None) -> np.ndarray:
            before = spent()
            times = np.array(page.evaluate(f"async () => {{ {code} }}"))
            if name is not None:
                results[f"{name}, CPU of the page"] = [(spent() - before) / len(times)]
            return times

        first = ["sort=stability", "sort=masks", "sort=id&descending=1", "search=009", "offset=9000"]
        asked = run(ASK % json.dumps(first))
        results |= {f"list, {query}": [float(asked[i][0])] for i, query in enumerate(first)}
        for name, code in (("filter", FILTER), ("next image", NEXT)):
            times = run(code, name)
            results[f"{name}, drawn"] = times[:, 0].tolist()
            results[f"{name}, on screen"] = times[:, 1].tolist()
        results["pointer moved"] = run(HOVER, "pointer moved")[:, 0].tolist()
        scrolled = run(SCROLL, "frame while scrolling")
        results["frame while scrolling"] = scrolled[:, 0].tolist()
        results["rows in the list"] = scrolled[:, 1].tolist()
    return results


def pictures(roots: list[str], destination: Path) -> None:
    """viewer.png and correct.png of the first dataset, viewer-compare.png of both, palette-reduced."""
    views = {
        "viewer.png": (roots[:1], "image=truck.jpg&points=1"),
        "viewer-compare.png": ([roots[0], "--against", roots[1]], "image=dog.jpg&mask=2"),
    }
    for name, (arguments, query) in views.items():
        with opened(*arguments) as (page, address, _):
            page.goto(f"{address}&{query}")
            page.wait_for_selector("body[data-ready]")
            page.wait_for_timeout(1500)
            _save(page, destination / name)
    with opened(roots[0]) as (page, address, _):
        page.goto(f"{address.replace('/?', '/correct?')}&image=coffee.jpg")
        page.fill("#who", "Ada")
        page.keyboard.press("Enter")
        page.wait_for_selector("#stage[data-image] .picture[src]")
        page.wait_for_timeout(1500)
        page.keyboard.press("a")
        box = page.query_selector(".sheet").bounding_box()
        page.mouse.click(box["x"] + 0.44 * box["width"], box["y"] + 0.3 * box["height"])
        page.wait_for_selector("#candidates .button")
        _save(page, destination / "correct.png")


def _save(page: Any, path: Path) -> None:
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("root", type=Path)
    measuring.add_argument("--images", type=int, default=10_000)
    measuring.add_argument("--masks", type=int, default=200)
    taking = commands.add_parser("pictures")
    taking.add_argument("roots", nargs=2)
    taking.add_argument("destination", type=Path)
    options = parser.parse_args()
    if options.command == "pictures":
        pictures(options.roots, options.destination)
        return
    if not options.root.exists():
        make_dataset(options.root, options.images, options.masks)
    for name, values in measure(options.root).items():
        worst = f"  worst {max(values):8.1f}" if len(values) > 1 else ""
        print(f"{name:36} {statistics.median(values):8.1f}{worst}")


if __name__ == "__main__":
    main()

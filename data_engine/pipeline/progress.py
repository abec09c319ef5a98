"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_engine.dataset.commits import CommitRecord, Totals
from data_engine.pipeline.events import BatchShrunk, Event, ImageDone, ShardFailed, SliceCommitted, SliceLost
from data_engine.pipeline.plan import JobPlan
from data_engine.storage import redact

if TYPE_CHECKING:
    from data_engine.pipeline.job import JobReport

_LINE_EVERY_S = 10.0
_DRAWN_EVERY_S = 0.25
_EXAMPLES = 3
_WORKERS_SHOWN = 16
_SHARDS_NAMED = 20  # of those that fail: a job may have a million


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the driver of a cluster knows at a moment."""

    shards: Mapping[str, int]  # by state: pending, running, done, failed
    workers: Mapping[str, int]  # by state: starting, busy, idle, excluded
    retries: Mapping[str, int]  # by cause
    running: Sequence[tuple[str, str, str | None, int]]  # worker, node, its shard, images done of it
    done_now: int  # shards that this run has done

    def parts(self) -> list[str]:
        """For the line of progress: shards, workers, and what went wrong, if anything did."""
        total = sum(self.shards.values())
        parts = [f"{self.shards['done']:,}/{total:,} shards"]
        parts.append(", ".join(f"{count} {state}" for state, count in self.workers.items() if count) + " workers")
        if self.shards["failed"]:
            parts.append(f"{self.shards['failed']:,} shards failed")
        if self.retries:
            parts.append("retries: " + ", ".join(f"{cause} {count}" for cause, count in self.retries.items()))
        return parts

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("worker", "node", "shard", "images done"):
            table.add_column(column)
        for name, node, shard, images in self.running[:_WORKERS_SHOWN]:
            table.add_row(name, node[:8], shard or "idle", str(images) if shard else "")
        if len(self.running) > _WORKERS_SHOWN:
            table.add_row(f"and {len(self.running) - _WORKERS_SHOWN} more")
        return table


class _Stderr(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process here. Ctrl-C ends the `tee` behind a job before the job has committed."""
        self.quiet = True


class Progress:
    """Counts events and shows them. `silent()` only counts."""

    def __init__(self, console: Console | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._begun = self._spoken = clock()
        self._drawn = -math.inf
        self._images = self._masks = 0
        self._before = Totals()
        self._expected: int | None = None
        self._stages: Counter[str] = Counter()
        self._from_commits = False
        self._cluster: ClusterState | None = None
        self._shards = self._shards_done = self._shards_done_now = 0
        self._shards_failed = 0
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    @classmethod
    def silent(cls) -> Progress:
        return cls(None)

    @classmethod
    def console(cls) -> Progress:
        """On stderr, so that stdout stays free for results."""
        return cls(_Stderr(stderr=True, highlight=False, emoji=False))

    def start(self, plan: JobPlan, commits: Sequence[CommitRecord], resumed: bool) -> None:
        self._before = Totals.sum(record.totals for record in commits)
        self._expected = plan.images
        self._shards = len(plan.shards)
        self._shards_done = sum(record.final for record in commits)
        count = f"{plan.images:,} images" if plan.images is not None else f"{decimal(plan.bytes)} of images"
        shards = f"{len(plan.shards):,} shards" if len(plan.shards) > 1 else "one shard"
        self.note(f"{count} in {shards} from {plan.input}")
        if resumed:
            self.note(f"resuming: {self._before.images:,} images are committed already")
        if self._console and self._console.is_terminal:
            self._live = Live(
                self._line(), console=self._console, refresh_per_second=1 / _DRAWN_EVERY_S, transient=True
            )
            self._live.start()
        self._begun = self._spoken = self._clock()

    def note(self, text: str) -> None:
        self._print(escape(redact(text)))

    def from_commits(self) -> None:
        """Counts images when they are committed: on a cluster one may be masked twice, and a lost worker's are not."""
        self._from_commits = True

    def cluster(self, state: ClusterState) -> None:
        self._cluster = state
        self._refresh()

    def event(self, event: Event) -> None:
        if isinstance(event, ImageDone):
            if not self._from_commits:
                self._images += 1
                self._masks += event.masks
            if event.error_type:
                if not self._from_commits:
                    self.failures[event.error_type] += 1
                if len(self.examples[event.error_type]) < _EXAMPLES:
                    self.examples[event.error_type].append(f"{event.image_id}: {event.error_message}")
        elif isinstance(event, SliceCommitted):
            self._stages.update(event.record.timings)
            self._shards_done += event.record.final
            self._shards_done_now += event.record.final
            if self._from_commits:
                self._images += event.record.totals.images
                self._masks += event.record.totals.masks
                self.failures.update(event.record.totals.errors)
        elif isinstance(event, SliceLost):
            self.note(f"shard {event.shard}: another process is working on it; leaving it to that one")
        elif isinstance(event, BatchShrunk):
            self.note(f"out of memory: going on with {event.points} prompts at a time (the masks stay the same)")
        elif isinstance(event, ShardFailed):
            self._shards_failed += 1
            if self._shards_failed <= _SHARDS_NAMED:
                self.note(f"shard {event.shard} failed: {event.message}")
            elif self._shards_failed == _SHARDS_NAMED + 1:
                self.note("more shards fail; from here on they are counted")
        self._refresh()

    def _refresh(self) -> None:
        if self._live:
            if self._clock() - self._drawn >= _DRAWN_EVERY_S:  # a view takes as long as the driver has for an image
                self._drawn = self._clock()
                self._live.update(self._view())
        elif self._console and self._clock() - self._spoken >= _LINE_EVERY_S:
            self._spoken = self._clock()
            self._print(self._line())

    def _print(self, what: RenderableType, soft_wrap: bool = False) -> None:
        """A job goes on when nobody can be told of it: the disk that its log is on may be full for a while."""
        if self._console is None:
            return
        try:
            self._console.print(what, soft_wrap=soft_wrap)
        except OSError:
            self._console.quiet = True
            self._console.print()  # drops what rich would keep, and try again with every line
            self._console.quiet = False

    def _view(self) -> Group:
        parts: list[Text | Table] = [self._line()]
        if self._cluster is not None:
            parts.append(self._cluster.table())
        return Group(*parts)

    def finish(self, report: JobReport) -> None:
        self.stop()
        self._print(summary_table(report.totals, report))
        for kind, examples in sorted(self.examples.items()):
            for example in examples:
                self._print(f"[red]{escape(kind)}[/red] {escape(redact(example))}", soft_wrap=True)
        self._name("shard failed", [shard.message for shard in report.failed_shards])
        self._name("damaged input", report.damaged_shards)

    def _name(self, what: str, messages: Sequence[str]) -> None:
        for message in messages[:_SHARDS_NAMED]:
            self._print(f"[red]{what}[/red] {escape(redact(message))}", soft_wrap=True)
        if len(messages) > _SHARDS_NAMED:
            self._print(f"[red]{what}[/red] and {len(messages) - _SHARDS_NAMED:,} more")

    def stop(self) -> None:
        """Gives the terminal back, whatever happened."""
        if self._live:
            live, self._live = self._live, None
            with suppress(OSError):
                live.stop()

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage by the slices committed in this run. Stages overlap."""
        return dict(self._stages)

    def _line(self) -> Text:
        elapsed = max(self._clock() - self._begun, 1e-9)
        rate = self._images / elapsed
        done = self._before.images + self._images
        parts = [f"{done:,}" + (f"/{self._expected:,}" if self._expected is not None else "") + " images"]
        parts.append(f"{rate:.2f} images/s" if rate < 10 else f"{rate:,.0f} images/s")
        parts.append(f"{self._before.masks + self._masks:,} masks ({self._masks / elapsed:,.0f}/s)")
        if self._shards_failed and self._cluster is None:
            parts.append(f"{self._shards_failed:,} shards failed")
        if failed := self._before.failed + sum(self.failures.values()):
            parts.append(f"{failed:,} failed")
        shards_left, shards_done_now = self._shards - self._shards_done, self._shards_done_now
        if self._cluster is not None:
            parts += self._cluster.parts()
            shards_left = sum(self._cluster.shards.values()) - self._cluster.shards["done"]
            shards_done_now = self._cluster.done_now
        elif self._expected is None and self._shards > 1:
            parts.append(f"{self._shards_done:,}/{self._shards:,} shards")
        if self._expected is not None and self._images:
            parts.append(f"{duration((self._expected - done) / rate)} to go")
        elif self._expected is None and shards_done_now:
            parts.append(f"about {duration(shards_left * elapsed / shards_done_now)} to go")
        return Text(" · ".join(parts))


def summary_table(totals: Totals, report: JobReport | None = None) -> Table:
    """Images, masks and what was rejected why."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("images", f"{totals.images:,}")
    if totals.failed:
        by_type = ", ".join(f"{kind} {count:,}" for kind, count in totals.errors.items())
        table.add_row("failed", f"{totals.failed:,}  ({by_type})")
    good = totals.images - totals.failed
    table.add_row("masks", f"{totals.masks:,}" + (f"  ({totals.masks / good:.1f} an image)" if good else ""))
    table.add_row("candidates", f"{totals.candidates:,}")
    for reason in ("iou", "stability", "edge", "area", "nms"):
        count = getattr(totals, f"rejected_{reason}")
        share = f"  ({count / totals.candidates:.0%})" if totals.candidates else ""
        table.add_row(f"  rejected: {_REASONS[reason]}", f"{count:,}{share}")
    if report is not None:
        table.add_row("this run", f"{report.new.images:,} images in {duration(report.seconds)}")
        if report.new.images and report.seconds:
            table.add_row("throughput", f"{report.new.images / report.seconds:.2f} images/s")
        if report.points_at_once:
            table.add_row("memory", f"ran out; {report.points_at_once} prompts at a time fitted")
        state = "complete" if report.complete else "stopped" if report.interrupted else "incomplete"
        table.add_row("dataset", state)
    return table


_REASONS = {
    "iou": "predicted IoU",
    "stability": "stability",
    "edge": "cut off by its crop",
    "area": "area",
    "nms": "duplicate",
}


def duration(seconds: float) -> str:
    """ "42 s", "3 min 20 s", "5 h 02 min", "3 d 4 h"."""
    seconds = int(max(seconds, 0))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {seconds % 60:02d} s"
    return f"{seconds} s"

"""All edits of a dataset, and which of them there were at a moment."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from data_engine.corrections.edits import CORRECTIONS_FOLDER, EDITS, STAMP_LENGTH, Edit, in_order
from data_engine.corrections.packs import Packs, hour_of
from data_engine.dataset.sealed_rows import read_rows
from data_engine.errors import DatasetError
from data_engine.storage import join, list_names, read_bytes

_READERS = 32
_VERSION = re.compile(r"(\d{8}T\d{6}\.\d{6})-([0-9a-f]{12})")
# Edits of an hour that are in no pack: so many are put into one, in the last hour and in those before.
_WORTH_A_PACK, _LEFT_OVER = 500, 20


class EditBook:
    """Those of one dataset. Files that are known are not read again, since none ever changes. Safe among threads."""

    def __init__(self, root: str, fingerprint: str, *, packs: bool = False) -> None:
        """fingerprint: of the dataset's plan. packs: whether they are written, too, so that the next one reads less."""
        self._folder = join(root, CORRECTIONS_FOLDER)
        self._fingerprint = fingerprint
        self._known: dict[str, Edit] = {}
        self._images: dict[str, list[Edit]] = {}  # of all that are known
        self._changed: set[str] = set()
        self._people: set[str] = set()
        self._added: list[str] = []
        self._packs = Packs(self._folder)
        self._writes_packs = packs
        self._unpacked: Counter[str] = Counter()  # known edits by hour that are in no pack
        self._lock = Lock()

    def names(self, version: str | None = None) -> list[str]:
        """Of the files of all edits that are there now, by time, or of those that a version means.

        Raises DatasetError where the version is not there as it was.
        """
        names = [name for name in list_names(self._folder) if name.endswith(".parquet") and not name.startswith(".")]
        return names if version is None else _of_version(names, version, self._folder)

    def add(self, edit: Edit) -> None:
        """Takes in an edit that this process has stored, so that it need not be read."""
        with self._lock:
            self._added.append(edit.file_name)
            self._take({edit.file_name: edit})
            self._unpacked[hour_of(edit.file_name)] += 1

    def read(self, names: Sequence[str] | None = None) -> dict[str, list[Edit]]:
        """Edits by image, each image's by time. names: only those of these files.

        Raises DatasetError for a damaged or lost file, and for edits of another dataset.
        """
        added = len(self._added)
        wanted = self.names() if names is None else names
        unread = [name for name in wanted if name not in self._known]
        packed = {name: self._edit(row, name) for name, row in self._packs.read(unread).items()}
        alone = [name for name in unread if name not in packed]
        with ThreadPoolExecutor(_READERS) as pool:
            read = dict(zip(alone, pool.map(self._read, alone), strict=True))
        with self._lock:
            self._take(packed | read)
            self._unpacked.update(map(hour_of, read))
            if names is None:  # what was added meanwhile may not have been listed yet
                self._keep_only({*wanted, *self._added[added:]})
                found = dict(self._images)
            else:
                found = _by_image(self._known[name] for name in wanted)
        if self._writes_packs:
            self._pack()
        return found

    def of_image(self, image_id: str) -> list[Edit]:
        """Those that are known, by time."""
        with self._lock:
            return self._images.get(image_id, [])

    def changed(self) -> dict[str, list[Edit]]:
        """The known edits of the images that have others than when this was asked last."""
        with self._lock:
            found = {image_id: self._images.get(image_id, []) for image_id in self._changed}
            self._changed.clear()
        return found

    @property
    def people(self) -> frozenset[str]:
        """Who made the known edits."""
        with self._lock:
            return frozenset(self._people)

    def _take(self, edits: Mapping[str, Edit]) -> None:
        new = {name: edit for name, edit in edits.items() if name not in self._known}
        self._known |= new
        for image_id, of_image in _by_image(new.values()).items():
            self._images[image_id] = in_order([*self._images.get(image_id, ()), *of_image])
            self._changed.add(image_id)
            self._people.update(edit.who for edit in of_image)

    def _keep_only(self, names: Collection[str]) -> None:
        """Forgets the edits whose files somebody has taken out by hand."""
        gone = [name for name in self._known if name not in names]
        for name in gone:
            edit = self._known.pop(name)
            self._images[edit.image_id] = [each for each in self._images[edit.image_id] if each is not edit]
            self._changed.add(edit.image_id)
            if not self._images[edit.image_id]:
                del self._images[edit.image_id]

    def _pack(self) -> None:
        with self._lock:
            last = max(self._unpacked, default="")
            due = [
                hour
                for hour, count in self._unpacked.items()
                if count >= (_WORTH_A_PACK if hour == last else _LEFT_OVER)
            ]
            edits = {hour: [edit for name, edit in self._known.items() if hour_of(name) == hour] for hour in due}
            for hour in due:
                del self._unpacked[hour]
        for hour, of_hour in edits.items():
            self._packs.write(hour, of_hour)

    def _read(self, name: str) -> Edit:
        uri = join(self._folder, name)
        try:
            (row,) = read_rows(read_bytes(uri), EDITS)
        except FileNotFoundError:
            raise DatasetError(f"{uri} is gone: put it back from a copy") from None
        except ValueError as error:
            raise DatasetError(
                f"{uri} does not hold an edit: {error}; put it back from a copy, or move it out of {self._folder} "
                "to go on without what somebody did there"
            ) from None
        return self._edit(row, name)

    def _edit(self, row: Mapping[str, Any], name: str) -> Edit:
        if row["fingerprint"] != self._fingerprint:
            raise DatasetError(
                f"{join(self._folder, name)} is an edit of another dataset: move it out of {self._folder}"
            )
        return Edit(**row)


def newest_version(root: str) -> str | None:
    """Of all edits that are there now. None where there is none."""
    names = EditBook(root, "").names()
    return version_of(names) if names else None


def version_of(names: Sequence[str]) -> str:
    """Names these edits, to the file: "<time of the last>-<digest>". names: of their files, by time."""
    return f"{names[-1][:STAMP_LENGTH]}-{_digest(names)}"


def _of_version(names: list[str], version: str, folder: str) -> list[str]:
    match = _VERSION.fullmatch(version)
    until = [name for name in names if match and name[:STAMP_LENGTH] <= match[1]]
    if match is None or _digest(until) != match[2]:
        raise DatasetError(
            f"{folder} does not hold version {version!r} of the corrections: edits of that time came late or are gone"
        )
    return until


def _by_image(edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.image_id, []).append(edit)
    return {image_id: in_order(each) for image_id, each in found.items()}


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]

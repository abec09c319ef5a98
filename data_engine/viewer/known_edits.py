"""What a server knows of everybody's edits: its own at once, those of others some seconds later."""

from __future__ import annotations

import time
from threading import Lock, Thread

from data_engine.corrections.edit_book import EditBook
from data_engine.corrections.edits import Edit
from data_engine.corrections.standing import standing

_LOOK_AGAIN = 2.0  # seconds
_RESTS = 10  # times as long as it took to look: a store lists 100,000 files in some seconds
_PATIENCE = 1.0  # seconds that somebody waits for what others did just now


class KnownEdits:
    """Safe among threads."""

    def __init__(self, book: EditBook) -> None:
        self._book = book
        self._done: frozenset[str] = frozenset()
        self._lock = Lock()
        self._looker: Thread | None = None
        self._looked: float | None = None  # when it ended
        self._took = 0.0
        self._read = False  # all that there was once
        self._failure: Exception | None = None

    def of_image(self, image_id: str) -> list[Edit]:
        """By time. Raises DatasetError and StorageError, as all here do, where the edits cannot be read."""
        self._look()
        return self._book.of_image(image_id)

    def done(self) -> frozenset[str]:
        """The images that somebody has gone through."""
        self._look()
        with self._lock:
            changed = self._book.changed()
            if changed:
                stand = {image_id: standing(each[0].n_masks, each) for image_id, each in changed.items() if each}
                done = {image_id for image_id, image in stand.items() if image.done_by}
                self._done = (self._done - changed.keys()) | done
            return self._done

    def people(self) -> frozenset[str]:
        self._look()
        return self._book.people

    def add(self, edit: Edit) -> None:
        """One that this server has stored."""
        self._book.add(edit)

    def _look(self) -> None:
        """Lists the store behind, and waits for it only the first time and where that is soon done."""
        with self._lock:
            rest = max(_LOOK_AGAIN, _RESTS * self._took)
            if self._looker is None and (self._looked is None or time.monotonic() - self._looked > rest):
                self._looker = Thread(target=self._read_all, name="edits", daemon=True)
                self._looker.start()
            looker = self._looker
        if looker is not None and not self._read:
            looker.join()
        elif looker is not None and self._took < _PATIENCE:
            looker.join(_PATIENCE)
            if looker.is_alive():
                self._took = _PATIENCE  # and nobody waits again
        if self._failure is not None:
            raise self._failure

    def _read_all(self) -> None:
        begun = time.monotonic()
        try:
            self._book.read()
            self._failure = None
            self._took = time.monotonic() - begun if self._read else 0.0  # the first time all files are read
            self._read = True
        except Exception as error:  # whoever asks is told
            self._failure = error
        self._looked = time.monotonic()
        self._looker = None

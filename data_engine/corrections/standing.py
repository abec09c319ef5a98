"""What stands of an image's masks after the edits of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from data_engine.corrections.edits import Edit

Key = int | str  # a mask: its mask_id in the dataset, or the id of the edit that made it


@dataclass(frozen=True)
class Standing:
    """The masks of an image, in order, and who has gone through it."""

    masks: Mapping[Key, Edit | None]  # None: as in the dataset
    gone: int  # masks of the dataset that were deleted or replaced
    done_by: tuple[str, ...]
    last_of: Mapping[str, Edit]  # by person, the edit that they would undo next


def standing(n_masks: int, edits: Sequence[Edit]) -> Standing:
    """edits: of one image, by time. n_masks: that the dataset has of it.

    An edit of a mask that another edit made counts after that one, whatever their clocks said.
    A replacement takes the place of what it replaces. One whose mask somebody else has deleted comes last: it was made
    to stay. An edit counts unless an edit that counts takes it back, so that an undone undo is none.
    """
    undone_by: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.action == "undo" and edit.of is not None:
            undone_by.setdefault(edit.of, []).append(edit)

    @cache
    def counts(edit_id: str) -> bool:
        return not any(counts(undo.edit_id) for undo in undone_by.get(edit_id, ()))

    masks: dict[Key, Edit | None] = dict.fromkeys(range(n_masks))
    done: dict[str, None] = {}
    last: dict[str, Edit] = {}
    for edit in _causes_first(edits):
        if edit.action == "undo" or not counts(edit.edit_id):
            continue
        last[edit.who] = edit
        target = edit.target
        if edit.action == "done":
            done[edit.who] = None
        elif edit.action == "delete" and target is not None:
            masks.pop(target, None)
        elif edit.action == "replace" and target in masks:
            masks = dict((edit.edit_id, edit) if key == target else (key, of) for key, of in masks.items())
        else:
            masks[edit.edit_id] = edit
    gone = n_masks - sum(isinstance(key, int) for key in masks)
    return Standing(masks, gone, tuple(done), last)


def _causes_first(edits: Sequence[Edit]) -> list[Edit]:
    """By time, but none before the edit that made its mask: two writers' clocks may differ by more than they waited."""
    unplaced = {edit.edit_id: edit for edit in edits}
    placed: list[Edit] = []
    for edit in edits:
        chain = []
        cause: Edit | None = unplaced.pop(edit.edit_id, None)
        while cause is not None:
            chain.append(cause)
            cause = unplaced.pop(cause.of, None) if cause.of is not None else None
        placed += reversed(chain)
    return placed

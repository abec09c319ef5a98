"""What an export did, piece by piece and altogether."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class ExportReport:
    """Counts that add up over pieces. `figures` are a format's own, which it adds up itself."""

    images: int = 0
    masks: int = 0
    files: int = 0
    without_masks: int = 0
    filtered_out: int = 0  # images of whose masks none passed the filters
    failed: int = 0
    missing: int = 0  # originals that are gone or changed
    too_large: int = 0  # of more pixels a side than a JPEG can have
    copied: int = 0  # originals taken over byte for byte; the others were encoded again
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sum(cls, reports: Iterable[ExportReport]) -> ExportReport:
        """The counts of all; without figures."""
        total = cls()
        for report in reports:
            for name in _COUNTED:
                setattr(total, name, getattr(total, name) + getattr(report, name))
        return total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_COUNTED = [field.name for field in fields(ExportReport) if field.name != "figures"]

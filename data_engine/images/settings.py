"""What can be said about an input: where its images are, which files count, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["auto", "files", "manifest", "tar", "parquet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSettings:
    """How an input is listed and read.

    Raises ValueError naming the field, its value and what would be right.
    """

    kind: Kind = "auto"
    """What the input is. auto: from the names of its files and, for Parquet, from its columns."""
    recursive: bool = True
    """Read the folders below a folder too."""
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif")
    """Names that end in a dot and one of these, in any case, are images; other files are skipped and counted."""
    images_per_shard: int = 1000
    """Images a shard, where they are single files or rows of Parquet. A tar is always one shard."""
    uri_column: str | None = None
    """The column of a CSV, JSON Lines or Parquet manifest that names the images. None: guessed from its name."""
    image_column: str | None = None
    """The column of a Parquet file that holds the images. None: guessed from its type and name."""
    id_column: str | None = None
    """The column that names an image in the dataset. None: the manifest's entry as written, or file and row."""
    max_pixels: int = 180_000_000
    """Images of more pixels than this are failed rows; nothing is allocated for them."""
    max_image_bytes: int = 256 << 20
    """Images of more encoded bytes than this are failed rows; they are not read."""
    apply_orientation: bool = True
    """Turn and mirror images as their EXIF orientation says. (TIFF is always turned.)"""
    allow_private_hosts: bool = False
    """Let http and https lead to this machine, private networks and metadata services."""
    allow_local_in_remote_manifests: bool = False
    """Let a manifest that was read over the network name files of this machine."""
    fetch_threads: int = 8
    """Files fetched at once. Speed only, never the result."""

    # For pydantic, which validates this dataclass as a section of the job's configuration.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (slots: not a field)

    def __post_init__(self) -> None:
        for name in ("images_per_shard", "max_pixels", "max_image_bytes", "fetch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more")
        if not self.extensions:
            raise ValueError("extensions is empty: name at least one, such as jpg")
        for extension in self.extensions:
            if not extension or extension != extension.lower() or extension.startswith("."):
                raise ValueError(f"extensions has {extension!r}: write it in lower case and without the first dot")

    def is_image(self, name: str) -> bool:
        """Whether a file or tar member of this name counts as an image. Hidden ones (.name, ._name) never do."""
        base = name.rsplit("/", 1)[-1]
        return not base.startswith(".") and base.lower().endswith(
            tuple(f".{extension}" for extension in self.extensions)
        )

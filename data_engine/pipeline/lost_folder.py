"""A folder of photos can go away as a whole, as a network mount does. That is no fault of the photos in it."""

from __future__ import annotations

import os

from data_engine.images.shard import EncodedImage, Shard
from data_engine.storage import is_local, local_path


def lost_folder(shard: Shard, image: EncodedImage) -> str | None:
    """Why an image that cannot be read is no failed row: the listed folder is gone, or empty. None where it is one.

    Only asked of files below a listed folder: what a manifest names lies anywhere, and outlives the manifest.
    """
    if image.error is None or image.error.type != "unreadable" or shard.kind != "files" or not is_local(shard.uri):
        return None
    folder, file = local_path(shard.uri), shard.files[image.index].uri
    if not is_local(file) or folder not in local_path(file).parents:
        return None
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return None
        reason = "it is empty"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    return f"{folder}: the input was there and is not any more ({reason}); mount it, and run the same command again"

"""A segmenter that knows the embedding of one view already: what was encoded for prompts serves generation too."""

from __future__ import annotations

from typing import Any, cast

import torch

from data_engine.sam.segmenter import Embeddings, Segmenter, View


def encoded_once(segmenter: Segmenter, known: View, embeddings: Embeddings) -> Segmenter:
    """The same segmenter in all but `encode`, which answers for the known view without computing."""
    return cast(Segmenter, _EncodedOnce(segmenter, known, embeddings))


class _EncodedOnce:
    def __init__(self, segmenter: Segmenter, known: View, embeddings: Embeddings) -> None:
        self._segmenter = segmenter
        self._known = known
        self._embeddings = embeddings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def encode(self, views: list[View]) -> Embeddings:
        # Alone only: in a batch with crops, its last bits would be others.
        if len(views) == 1 and torch.equal(views[0].pixels, self._known.pixels):
            return self._embeddings
        return self._segmenter.encode(views)

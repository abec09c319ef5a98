"""torch.compile for the two networks where the time goes. It takes minutes once, so what it makes is kept on disk."""

from __future__ import annotations

import os

from data_engine.sam.checkpoints import cache_dir
from data_engine.sam.model import Sam


def compile_networks(model: Sam) -> None:
    """Compiles the image encoder and the two-way transformer when they are first used, in place.

    Kernels are cached below the cache folder of the checkpoints unless TORCHINDUCTOR_CACHE_DIR says otherwise. Sums
    are taken in another order, so the last bits of results differ from those of the plain networks.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    model.image_encoder.compile(dynamic=False)
    model.mask_decoder.transformer.compile()

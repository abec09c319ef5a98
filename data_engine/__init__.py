"""The open data engine of Segment Anything: a bucket of photographs in, a dataset of masks out.

    from data_engine import MaskGenerator, load_segmenter
    masks = MaskGenerator(load_segmenter("starter")).generate(image)

Names load when they are first used, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from data_engine.config import JobConfig as JobConfig
    from data_engine.config import load_config as load_config
    from data_engine.dataset.audit import audit as audit
    from data_engine.dataset.reader import DatasetImage as DatasetImage
    from data_engine.dataset.reader import MaskDataset as MaskDataset
    from data_engine.dataset.torch_dataset import MaskImages as MaskImages
    from data_engine.errors import DataEngineError as DataEngineError
    from data_engine.masks.generator import MaskGenerator as MaskGenerator
    from data_engine.masks.image_masks import ImageMasks as ImageMasks
    from data_engine.masks.settings import MaskSettings as MaskSettings
    from data_engine.pipeline.job import generate as generate
    from data_engine.sam.predictor import SamPredictor as SamPredictor
    from data_engine.sam.segmenter import load_segmenter as load_segmenter

_HOMES = {
    "DataEngineError": "errors",
    "DatasetImage": "dataset.reader",
    "ImageMasks": "masks.image_masks",
    "JobConfig": "config",
    "MaskImages": "dataset.torch_dataset",
    "MaskDataset": "dataset.reader",
    "MaskGenerator": "masks.generator",
    "MaskSettings": "masks.settings",
    "SamPredictor": "sam.predictor",
    "audit": "dataset.audit",
    "generate": "pipeline.job",
    "load_config": "config",
    "load_segmenter": "sam.segmenter",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

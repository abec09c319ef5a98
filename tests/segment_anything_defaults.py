"""The defaults in the signature of segment-anything's SamAutomaticMaskGenerator, read from the released package."""

import inspect

from parity.reference import SamAutomaticMaskGenerator

_NOT_SETTINGS = ("self", "model", "output_mode", "points_per_batch")  # the last is speed alone
RELEASED = {
    name: parameter.default
    for name, parameter in inspect.signature(SamAutomaticMaskGenerator.__init__).parameters.items()
    if name not in _NOT_SETTINGS
}

"""The open data engine of Segment Anything: a bucket of photographs in, a dataset of masks out."""

__version__ = "0.1.0"

"""Labelled images to train on: readers of datasets, SA-1B, COCO, id maps and procedural scenes, behind one contract."""

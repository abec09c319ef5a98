"""Masks that people add, replace and delete in the viewer: kept beside the dataset, and made into one of its own.

| module | noun |
|---|---|
| `edits.py` | `Edit`: what a person did to an image, who, when and how; its file, which never changes |
| `edit_book.py` | `EditBook`: all edits of a dataset, and versions: which there were at a moment |
| `packs.py` | the edits of an hour once more in one file, to be read sooner |
| `standing.py` | what stands of an image after its edits |
| `click_model.py` | clicks and boxes on one image -> a model's masks |
| `painted.py` | a mask that somebody painted, looked at before it is believed |
| `apply.py` | a dataset and its edits -> a dataset with the corrected masks |
"""

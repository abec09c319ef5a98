"""Duplicates: images that are the same or nearly so, and masks that are the same within an image."""

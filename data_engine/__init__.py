"""The open data engine of Segment Anything."""

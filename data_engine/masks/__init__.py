"""Automatic mask generation: an image in, every mask in it out."""

"""The benchmark of automatic mask generation: other generators and this one, on the same images and weights."""

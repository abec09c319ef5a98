"""Training: of any SAM on images with masks (`supervised`), and of the starter model, from scratch without labels."""

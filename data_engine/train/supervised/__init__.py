"""Training of any SAM on images with masks, by simulated interactive prompts (`data-engine train`)."""

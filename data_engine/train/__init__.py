"""Training: prompts, losses and loop for any SAM, and the data that the starter model is trained on."""

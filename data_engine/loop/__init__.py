"""The loop: masks by the present model, a fine-tuning on them, a measurement, and again."""

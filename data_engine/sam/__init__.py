"""Promptable segmentation: image + prompts -> mask logits and predicted IoU. No files but weights, no cluster."""

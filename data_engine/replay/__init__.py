"""Stored candidates filtered again at other thresholds, without a model."""

"""Exports of a model that do not need dinov2_hf. Each is checked when it is written."""

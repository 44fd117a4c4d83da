"""Pretraining and distillation as scripts; in a wheel `dinov2_hf.examples`."""

"""The subcommands of `dinov2-hf`, one file for each: a function whose signature is its options."""

from .main import main


__all__ = ["main"]

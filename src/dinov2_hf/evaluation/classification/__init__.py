"""What the protocols of classification share."""

"""The stages of a curation, a file for each step."""

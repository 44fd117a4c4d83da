"""The common parts of retrieval and copy detection."""

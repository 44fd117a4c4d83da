"""What retrieval and copy detection share."""

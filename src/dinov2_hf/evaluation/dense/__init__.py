"""What segmentation and depth share."""

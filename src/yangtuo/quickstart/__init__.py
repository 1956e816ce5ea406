"""The embedded base, its texts, and the road that teaches it Chinese."""

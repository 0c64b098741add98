"""Task models behind an upstream and its layer interface."""

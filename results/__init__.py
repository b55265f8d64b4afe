"""What runs leave behind: the store, metrics, analysis, curves."""

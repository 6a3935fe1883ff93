"""Every figure, drawn by code from arrays and tables."""

"""The one form that every dataset takes, in memory and on disk."""

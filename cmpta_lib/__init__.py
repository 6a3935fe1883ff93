"""CMPTA: a frozen LLM reads six pseudo tokens that a small adapter makes from face and voice.

Importing this package imports nothing heavy; every module imports what it needs.
"""

__version__ = "0.1.0"

"""The same method as fast as it goes; each file says what it equals."""

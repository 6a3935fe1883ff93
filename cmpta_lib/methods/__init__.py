"""What is compared: CMPTA, its ablations, and whatever other method reads the same clips."""

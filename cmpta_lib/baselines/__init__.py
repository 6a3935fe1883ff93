"""What CMPTA is compared with: the methods of the tables, MSE-Adapter, and reference lines."""

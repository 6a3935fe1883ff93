"""Systems beyond the paper: the other documents' and today's best."""

"""Tables from finished runs, with how sure they are, and their export."""

"""The command line: `cmpta reproduce` runs every notebook headless and writes one report."""

"""Bring the data in: fetch, verify and convert each dataset into the folders that `cmpta_lib.data.corpus` reads."""

"""Backups: `archive.py` is the file, `take.py` fills it, `bring_back.py` makes a platform of it."""

"""One folder a language; see declaration.py and contract.md."""

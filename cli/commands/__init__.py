"""The commands, a module each: `configure(parser)` and `run(arguments)`. Listed in main.py."""

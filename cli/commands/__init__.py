"""The commands, a module each with the click command `command`. Listed in main.py."""

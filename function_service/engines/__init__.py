"""How sandboxes come to be."""

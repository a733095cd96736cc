"""Read-only trees, addressed by their content."""

"""The engine that needs nothing but Linux: namespaces, cgroups, overlayfs."""

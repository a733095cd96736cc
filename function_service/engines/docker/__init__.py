"""The engine that runs functions in Docker's containers, for a dockerd on the same Linux machine."""

"""The git remote, and builds that turn a commit into layers."""

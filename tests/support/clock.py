"""A clock for what takes one as a parameter."""


class Clock:
    """Time that tests move, in seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

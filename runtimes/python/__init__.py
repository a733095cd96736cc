"""Python: functions with a `handle`, ASGI and WSGI applications."""

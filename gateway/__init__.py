"""The HTTP face: routes, keys, admission, leases, forwarding, receipts. Start reading at `server.py`."""

"""The HTTP face: routes, keys, admission, leases, proxying, receipts."""

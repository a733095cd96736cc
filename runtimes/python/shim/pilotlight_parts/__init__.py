"""What the shim is made of; nothing here knows more than the standard library.

wire      HTTP/1.1 as bytes: parsing and framing, no I/O
messages  Request and Response, which functions import from `pilotlight`
failures  what is printed and answered when a handler fails
blocking  the server for synchronous handlers and WSGI: plain blocking calls
evented   the server for asynchronous handlers and ASGI: one event loop
wsgi, asgi  the two web-application interfaces on top of those servers
loading   finds the handler in the function's folder, and decides what it is
application  a loaded handler, and how each kind is served
output     marks what a function prints with the request that it was printed for
rehearsal  loads and calls handlers of our own, so that the first real one finds everything warm
"""

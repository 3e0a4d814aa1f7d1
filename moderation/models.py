"""Policies on what may go in and come out, and what they found."""

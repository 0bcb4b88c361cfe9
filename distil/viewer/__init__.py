"""Traces as pages in a browser: a local server, its pages, and what they draw."""

"""Graphs of traced neurites: cleaning, and later simple points and tubes."""

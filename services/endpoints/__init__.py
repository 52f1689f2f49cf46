"""Ray Serve endpoints."""

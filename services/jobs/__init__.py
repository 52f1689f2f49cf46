"""Commands as jobs on a Ray cluster: submitted, followed and stopped over HTTP, or written as a manifest."""

"""Writes the parts of the chart that follow from others: values.schema.json, README.md and the Grafana dashboard."""

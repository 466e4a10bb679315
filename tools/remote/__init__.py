"""Delivery to real MLflow servers, some of which fail."""

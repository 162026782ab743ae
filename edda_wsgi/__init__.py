"""Durable workflows for Flask applications."""

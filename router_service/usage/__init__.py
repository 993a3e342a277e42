"""Outbound to usage_service: the durable journal, its sender, cached prices and limit levels."""

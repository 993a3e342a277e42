"""Outbound to the providers: bytes to events and back, vendors' deviations. Decides nothing about routing."""

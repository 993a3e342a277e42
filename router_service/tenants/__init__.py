"""Outbound to the tenants table: store, cache, sealed keys. The only package here that knows SQL."""

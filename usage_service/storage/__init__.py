"""The ledger's tables. The only package here that knows SQL."""

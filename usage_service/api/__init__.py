"""The inbound wire: short servicers, and conversions between protos and domain values. Decides nothing."""

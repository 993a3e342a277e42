"""Keeps the ledger of every attempt: stores it once, prices it, and answers for it. Start at `app.py`."""

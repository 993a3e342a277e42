"""Routes each tenant's completions to the best provider, fails over, and reports every attempt. Start at `app.py`."""

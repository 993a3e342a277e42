"""Adapters to the model vendors: one pure codec for the OpenAI wire, one transport, small files for deviations.

Nothing here decides which provider to use, retries, or knows a tenant: it says what happened, in the terms of
`domain.errors`, and leaves the rest to `routing`.
"""

"""`python -m turnpike_client.cli`, for where the command is not on the path."""

from turnpike_client.cli import main

main()

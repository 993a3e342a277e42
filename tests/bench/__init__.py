"""What a completion through the router costs, beside calling the provider directly and beside a naive proxy."""

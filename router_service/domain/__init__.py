"""Pure values and decisions, synchronous, stdlib only. Time, randomness and ids are arguments."""

"""Pure values and arithmetic, synchronous, stdlib only. Time and ids are arguments."""

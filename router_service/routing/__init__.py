"""The verb: admit, rank, attempt, fail over, report. Reaches outside through `ports` only."""

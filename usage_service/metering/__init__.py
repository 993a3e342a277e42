"""The verb: record, report, limit, price. Reaches outside through `ports` only."""

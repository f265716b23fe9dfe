"""Part one of the road: the application writes events in the transaction that changes its data."""

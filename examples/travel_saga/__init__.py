"""A saga by orchestration: trips of a flight, a hotel and a car, which are booked together or not at all.

`trips.py`, `saga.py` and `orchestrator.py` are the service that leads; `supplier.py` is each of the three that follow.
The rest starts them, gets in their way, and counts.
"""

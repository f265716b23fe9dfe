"""The demo: an order service, a relay and a billing service on one PostgreSQL, and somebody who kills them.

`orders.py` and `billing.py` are what an application looks like. The rest starts them, kills them, and counts.
"""

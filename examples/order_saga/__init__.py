"""An order saga by choreography: four services that know each other only by topics in one shared log.

`orders.py`, `payments.py`, `stock.py` and `shipping.py` are the services. `check.py` says whether all went well; the
rest starts them and looks on: `make -C examples/order_saga demo`.
"""

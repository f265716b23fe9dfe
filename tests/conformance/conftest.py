import pytest

pytest.register_assert_rewrite("log_contract", "log_contract_groups", "log_contract_producer", "log_contract_tail")

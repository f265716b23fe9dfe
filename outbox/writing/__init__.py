"""How `write` keeps its promise: remembered with the transaction, inserted by one statement before its COMMIT.

write ──> target      which transaction, and may it still be written to
          pending     the list that hangs on it, weakly
COMMIT ─> hooks       what SQLAlchemy tells us, and what we do about it
          statement   the one INSERT
"""

"""What several test modules share: models, processes, oracles. Fixtures are in conftest.py; no test is here."""

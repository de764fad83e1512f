"""One script for each claim: it prints the table that its page shows, and asserts what the page says.

.. include:: README.md
"""

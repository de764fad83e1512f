"""One script for each claim: it prints the table that the README shows and asserts what the README says."""

"""What the posteriors are worth: each script prints its table, asserts its claims, and has --quick."""

"""The tests; a regular package, so that no installed package of that name is found first."""

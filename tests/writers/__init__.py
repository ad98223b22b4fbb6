"""Writers of small inputs: one format each, used by nothing but tests."""

"""Side-by-side runs against peers, and checks that need hundreds of fits: too long for the tests."""

"""What promises mean, as checks that can fail: one file a shelf, one function a promise.

The tests run them for every method on a shelf; `lithe check FILE` runs them for a method of your own.
"""

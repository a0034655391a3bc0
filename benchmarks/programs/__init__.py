"""What other programs run: scripts for interpreters that are not this one (``benchmarks.foreign`` starts them).

A script is started in a folder that holds the problem as raw float64 numbers, rows first (``X.bin`` and so on), and as whole numbers
in ``sizes.txt``. It prepares and compiles, prints ``{"ready": …}`` and then answers each line that it reads by one line of JSON.
"""

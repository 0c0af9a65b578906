"""What a GPU makes of it, full size, against the stock pipelines: `make bench-gpu`, in parts that resume."""

"""What a federation takes home: its adapter in formats that others read, and classifiers made of any of them."""

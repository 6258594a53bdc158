"""The demonstration shop: its policy, its tools, and the orders behind them."""

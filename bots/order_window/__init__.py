"""The order window: menu, stock and orders in SQLite, the tools that change them, and a page."""

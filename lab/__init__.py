"""The laboratory: everything that tries the product. Not shipped."""

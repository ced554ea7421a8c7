"""What tests stand on: a toy participant, real databases and servers, small helpers."""

"""What every process stands on: servers, errors, databases."""

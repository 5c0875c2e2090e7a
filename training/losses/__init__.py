"""What runs minimise."""

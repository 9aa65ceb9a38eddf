"""What is sent comes back."""
